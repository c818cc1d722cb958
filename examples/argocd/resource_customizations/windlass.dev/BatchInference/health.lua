-- Decides from the conditions Ready and Stalled by name; conditions it does not know change nothing.
local status = obj.status or {}
local seen = status.observedGeneration
if seen == nil or seen < (obj.metadata.generation or 0) then
  return { status = "Progressing", message = "Waiting for Windlass to see this generation" }
end

local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end

local function words(condition)
  return (condition.reason or "") .. ": " .. (condition.message or "")
end

local stalled, ready = conditions.Stalled, conditions.Ready
if stalled ~= nil and stalled.status == "True" then
  return { status = "Degraded", message = words(stalled) }
end
if ready == nil then
  return { status = "Progressing", message = "Waiting for the condition Ready" }
end
if ready.status ~= "True" then
  return { status = "Progressing", message = words(ready) }
end
if ready.reason == "Suspended" then
  return { status = "Suspended", message = words(ready) }
end
return { status = "Healthy", message = words(ready) }
