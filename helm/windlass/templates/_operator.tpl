{{- define "windlass.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end }}
{{- end }}
{{- end }}

{{/* What a schema cannot say because it is about two values. */}}
{{- define "windlass.check" -}}
{{- $operator := .Values.operator }}
{{- if and (not (kindIs "invalid" $operator.drainTimeoutSeconds)) (ge (float64 $operator.drainTimeoutSeconds) (float64 .Values.terminationGracePeriodSeconds)) }}
{{- fail (printf "operator.drainTimeoutSeconds: expected less than terminationGracePeriodSeconds (%v), found %v" .Values.terminationGracePeriodSeconds $operator.drainTimeoutSeconds) }}
{{- end }}
{{- range $pair := list (list "leaseRetrySeconds" "leaseRenewSeconds") (list "leaseRenewSeconds" "leaseDurationSeconds") }}
{{- $short := get $operator (index $pair 0) }}
{{- $long := get $operator (index $pair 1) }}
{{- if and $short $long (ge (float64 $short) (float64 $long)) }}
{{- fail (printf "operator.%s: expected less than operator.%s (%v), found %v" (index $pair 0) (index $pair 1) $long $short) }}
{{- end }}
{{- end }}
{{- end }}
