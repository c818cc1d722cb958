{{/* The settings of the operator: every field of OperatorSettings and FleetSettings is one variable. */}}
{{- define "windlass.environment" -}}
{{- $operator := .Values.operator | default dict }}
{{- $fleet := .Values.fleet | default dict }}
{{- $lists := dict "WINDLASS_NAMESPACES" (join "," (.Values.watchNamespaces | default list)) "WINDLASS_LEASE_NAMESPACE" (include "windlass.namespace" .) }}
{{- range $variable, $value := merge $lists (include "windlass.variables" (dict "prefix" "WINDLASS_" "values" $operator) | fromYaml) (include "windlass.variables" (dict "prefix" "WINDLASS_FLEET_" "values" $fleet) | fromYaml) }}
- name: {{ $variable }}
  value: {{ $value | quote }}
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
