-- Lets sync waves of an app of apps wait for each Application below it, which Argo CD does not do by itself.
local health = obj.status and obj.status.health or {}
if health.status == nil or health.status == "Unknown" or health.status == "Missing" then
  return { status = "Progressing", message = "Waiting for the first sync" }
end
return { status = health.status, message = health.message or "" }
