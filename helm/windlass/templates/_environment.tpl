{{/* The settings of the operator: every field of OperatorSettings and FleetSettings is one variable. */}}
{{- define "windlass.environment" -}}
{{- $operator := .Values.operator | default dict }}
{{- $fleet := .Values.fleet | default dict }}
{{- $places := dict "WINDLASS_NAMESPACES" (join "," (.Values.watchNamespaces | default list)) "WINDLASS_LEASE_NAMESPACE" (include "windlass.namespace" .) }}
{{- if .Values.gateway.enabled }}
{{- $_ := set $places "WINDLASS_ROUTES_SECRET" (include "windlass.routesSecretName" .) }}
{{- end }}
{{- if .Values.powerAgent.enabled }}
{{- $_ := set $places "WINDLASS_FLEET_POWER_AGENT_NAMESPACE" (include "windlass.powerNamespace" .) }}
{{- end }}
{{- $operator = include "windlass.variables" (dict "prefix" "WINDLASS_" "values" $operator) | fromYaml }}
{{- $fleet = include "windlass.variables" (dict "prefix" "WINDLASS_FLEET_" "values" $fleet) | fromYaml }}
{{- range $variable, $value := merge $places $operator $fleet }}
{{- /* The API server stores an empty value as none at all, and tools that compare would see a difference. */}}
{{- if $value }}
- name: {{ $variable }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* worker_count is workerCount here, drain_timeout_s drainTimeoutSeconds, reconciles_per_s reconcilesPerSecond. A value of null leaves the choice to the operator. */}}
{{- define "windlass.variables" -}}
{{- $prefix := .prefix }}
{{- range $key, $value := .values }}
{{- if not (kindIs "invalid" $value) }}
{{- /* toJson prints large numbers without an exponent, which the operator would refuse for a whole number. */}}
{{ $prefix }}{{ regexReplaceAll "_SECONDS?$" ($key | snakecase | upper) "_S" }}: {{ (kindIs "string" $value | ternary $value (toJson $value)) | quote }}
{{- end }}
{{- end }}
{{- end }}
