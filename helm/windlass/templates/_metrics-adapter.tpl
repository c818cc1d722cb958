{{/* Names, labels and rights of the metrics adapter. */}}

{{- define "windlass.adapterName" -}}
{{ include "windlass.fullname" . }}-metrics-adapter
{{- end }}

{{- define "windlass.adapterAccountName" -}}
{{- with .Values.metricsAdapter.serviceAccount -}}
{{ default (ternary (include "windlass.adapterName" $) "default" .create) .name }}
{{- end }}
{{- end }}

{{- define "windlass.adapterSecretName" -}}
{{ include "windlass.adapterName" . }}-certificate
{{- end }}

{{/* Frozen, as the operator's. */}}
{{- define "windlass.adapterSelectorLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: metrics-adapter
{{- end }}

{{/* Like windlass.metadata, of the component metrics-adapter. */}}
{{- define "windlass.adapterMetadata" -}}
{{- $metadata := include "windlass.metadata" . | fromYaml }}
{{- $_ := set $metadata.labels "app.kubernetes.io/component" "metrics-adapter" }}
{{- toYaml $metadata }}
{{- end }}

{{/* The APIs that are registered, as the process names them. */}}
{{- define "windlass.adapterApis" -}}
{{- $apis := list }}
{{- if .Values.metricsAdapter.customMetrics.enabled }}{{ $apis = append $apis "custom" }}{{ end }}
{{- if .Values.metricsAdapter.externalMetrics.enabled }}{{ $apis = append $apis "external" }}{{ end }}
{{- join "," $apis }}
{{- end }}

{{- define "windlass.adapterEnvironment" -}}
{{- $places := dict
  "WINDLASS_ADAPTER_NAMESPACE" (include "windlass.namespace" .)
  "WINDLASS_ADAPTER_SERVICE_NAME" (include "windlass.adapterName" .)
  "WINDLASS_ADAPTER_SECRET_NAME" (include "windlass.adapterSecretName" .)
  "WINDLASS_ADAPTER_NAMESPACES" (join "," (.Values.watchNamespaces | default list))
  "WINDLASS_ADAPTER_APIS" (include "windlass.adapterApis" .)
}}
{{- $settings := include "windlass.variables" (dict "prefix" "WINDLASS_ADAPTER_" "values" (.Values.metricsAdapter.settings | default dict)) | fromYaml }}
{{- range $variable, $value := merge $places $settings }}
{{- if $value }}
- name: {{ $variable }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* What a schema cannot say because it is about two values. */}}
{{- define "windlass.adapterCheck" -}}
{{- with .Values.metricsAdapter }}
{{- if not (or .customMetrics.enabled .externalMetrics.enabled) }}
{{- fail "metricsAdapter.enabled: expected customMetrics.enabled or externalMetrics.enabled to be true, found neither" }}
{{- end }}
{{- if and (eq (toString .settings.source) "prometheus") (not .settings.prometheusUrl) }}
{{- fail "metricsAdapter.settings.prometheusUrl: expected an address for the source prometheus, found none" }}
{{- end }}
{{- $interval := .settings.intervalSeconds }}
{{- $age := .settings.maxAgeSeconds }}
{{- if and $interval $age (ge (float64 $interval) (float64 $age)) }}
{{- fail (printf "metricsAdapter.settings.intervalSeconds: expected less than maxAgeSeconds (%v), found %v" $age $interval) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Pods of services: everywhere, or in the namespaces of watchNamespaces. */}}
{{- define "windlass.adapterPodRules" -}}
# Know which pods belong to which service, and where the source replicas finds their metrics.
- apiGroups: [""]
  resources: [pods]
  verbs: [list]
{{- end }}

{{- define "windlass.adapterClusterRules" -}}
# Let the API server trust the adapter's own certificate (caBundle), where the API is its own.
- apiGroups: [apiregistration.k8s.io]
  resources: [apiservices]
  resourceNames: [v1beta2.custom.metrics.k8s.io, v1beta1.external.metrics.k8s.io]
  verbs: [get, patch]
{{- end }}

{{/* Inside the adapter's own namespace. */}}
{{- define "windlass.adapterSecretRules" -}}
# Share one certificate among its replicas. The chart makes the Secret, so that the adapter need not create any.
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [{{ include "windlass.adapterSecretName" . }}]
  verbs: [get, update]
{{- end }}

{{/* A binding to the adapter: (dict "root" $ "name" NAME "namespace" NAMESPACE "role" ROLE "kind" KIND). */}}
{{- define "windlass.adapterBinding" -}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ empty .namespace | ternary "Cluster" "" }}RoleBinding
metadata:
  {{- include "windlass.adapterMetadata" (dict "root" .root "name" .name "namespace" .namespace) | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ .kind }}
  name: {{ .role }}
subjects:
  - kind: ServiceAccount
    name: {{ include "windlass.adapterAccountName" .root }}
    namespace: {{ include "windlass.namespace" .root }}
{{- end }}

{{/* A role and its binding to the adapter: (dict "root" $ "name" NAME "namespace" NAMESPACE "rules" RULES). */}}
{{- define "windlass.adapterGrant" -}}
{{- $scope := empty .namespace | ternary "Cluster" "" }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $scope }}Role
metadata:
  {{- include "windlass.adapterMetadata" (dict "root" .root "name" .name "namespace" .namespace) | nindent 2 }}
rules:
  {{- .rules | nindent 2 }}
{{ include "windlass.adapterBinding" (dict "root" .root "name" .name "namespace" .namespace "role" .name "kind" (printf "%sRole" $scope)) }}
{{- end }}
