{{/* Names, labels and rights of the power agent. */}}

{{- define "windlass.powerName" -}}
{{ include "windlass.fullname" . }}-power-agent
{{- end }}

{{/* Pods that rule a driver belong into a namespace of their own. */}}
{{- define "windlass.powerNamespace" -}}
{{ default (include "windlass.namespace" .) .Values.powerAgent.namespace }}
{{- end }}

{{- define "windlass.powerAccountName" -}}
{{- with .Values.powerAgent.serviceAccount -}}
{{ default (ternary (include "windlass.powerName" $) "default" .create) .name }}
{{- end }}
{{- end }}

{{/* Frozen, as the operator's. */}}
{{- define "windlass.powerSelectorLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: power-agent
{{- end }}

{{/* Like windlass.metadata, of the component power-agent. */}}
{{- define "windlass.powerMetadata" -}}
{{- $metadata := include "windlass.metadata" . | fromYaml }}
{{- $_ := set $metadata.labels "app.kubernetes.io/component" "power-agent" }}
{{- toYaml $metadata }}
{{- end }}

{{- define "windlass.powerEnvironment" -}}
- name: WINDLASS_POWER_NODE
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- $places := dict "WINDLASS_POWER_NAMESPACES" (join "," (.Values.watchNamespaces | default list)) }}
{{- $settings := include "windlass.variables" (dict "prefix" "WINDLASS_POWER_" "values" (.Values.powerAgent.settings | default dict)) | fromYaml }}
{{- range $variable, $value := merge $places $settings }}
{{- if $value }}
- name: {{ $variable }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Replicas and their services: everywhere, or in the namespaces of watchNamespaces. */}}
{{- define "windlass.powerNamespacedRules" -}}
# Know which pods of its node are replicas. RBAC cannot hold a list to one node; the agent asks for its own only.
- apiGroups: [""]
  resources: [pods]
  verbs: [list]
# Read the power profile of a service, by the name that its pods carry.
- apiGroups: [windlass.dev]
  resources: [inferenceservices]
  verbs: [get]
{{- end }}

{{- define "windlass.powerClusterRules" -}}
# Read which power each class allows.
- apiGroups: [windlass.dev]
  resources: [gpuclasses]
  verbs: [list]
# Tell which GPU a ResourceClaim gave to a pod.
- apiGroups: [resource.k8s.io]
  resources: [resourceslices]
  verbs: [list]
{{- end }}

{{/* A role and its binding to the agent: (dict "root" $ "namespace" NAMESPACE "rules" RULES). */}}
{{- define "windlass.powerGrant" -}}
{{- $scope := empty .namespace | ternary "Cluster" "" }}
{{- $name := include "windlass.powerName" .root }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $scope }}Role
metadata:
  {{- include "windlass.powerMetadata" (dict "root" .root "name" $name "namespace" .namespace) | nindent 2 }}
rules:
  {{- .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $scope }}RoleBinding
metadata:
  {{- include "windlass.powerMetadata" (dict "root" .root "name" $name "namespace" .namespace) | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $scope }}Role
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ include "windlass.powerAccountName" .root }}
    namespace: {{ include "windlass.powerNamespace" .root }}
{{- end }}
