{{/* Names, labels and rights of the gateway. */}}

{{- define "windlass.gatewayName" -}}
{{ include "windlass.fullname" . }}-gateway
{{- end }}

{{- define "windlass.gatewayAccountName" -}}
{{- with .Values.gateway.serviceAccount -}}
{{ default (ternary (include "windlass.gatewayName" $) "default" .create) .name }}
{{- end }}
{{- end }}

{{- define "windlass.routesSecretName" -}}
{{ include "windlass.gatewayName" . }}-routes
{{- end }}

{{/* Frozen, as the operator's. */}}
{{- define "windlass.gatewaySelectorLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end }}

{{/* Like windlass.metadata, of the component gateway. */}}
{{- define "windlass.gatewayMetadata" -}}
{{- $metadata := include "windlass.metadata" . | fromYaml }}
{{- $_ := set $metadata.labels "app.kubernetes.io/component" "gateway" }}
{{- toYaml $metadata }}
{{- end }}

{{- define "windlass.gatewayArguments" -}}
- run
- "--routes-secret={{ include "windlass.namespace" . }}/{{ include "windlass.routesSecretName" . }}"
{{- with .Values.watchNamespaces }}
- "--namespaces={{ join "," . }}"
{{- end }}
- "--gateways={{ max 1 (int .Values.gateway.replicas) }}"
{{- with .Values.gateway.settings }}
- "--host={{ .host }}"
- "--port={{ .port }}"
- "--probe-port={{ .probePort }}"
- "--max-connections={{ int64 .maxConnections }}"
- "--max-body-bytes={{ int64 .maxBodyBytes }}"
- "--drain-timeout={{ .drainTimeoutSeconds }}"
{{- end }}
{{- end }}

{{/* What a schema cannot say because it is about two values. */}}
{{- define "windlass.gatewayCheck" -}}
{{- $allowed := default "windlass-system" .Values.fleet.gatewayNamespace }}
{{- $namespace := include "windlass.namespace" . }}
{{- if ne $allowed $namespace }}
{{- fail (printf "fleet.gatewayNamespace: expected %s, the namespace of this release, because replicas let in only gateways of that namespace, found %s" $namespace $allowed) }}
{{- end }}
{{- with .Values.gateway.settings }}
{{- if eq (int .port) (int .probePort) }}
{{- fail (printf "gateway.settings.probePort: expected another port than port (%v)" .port) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Endpoints of services: everywhere, or in the namespaces of watchNamespaces. */}}
{{- define "windlass.gatewayEndpointRules" -}}
# Know which replicas are ready. Only their addresses; which service they belong to and who may use it says the routing table.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
{{- end }}

{{/* Inside the release's namespace. */}}
{{- define "windlass.gatewayRouteRules" -}}
# Read the routing table, which the operator writes. No other Secret.
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [{{ include "windlass.routesSecretName" . }}]
  verbs: [list, watch]
{{- end }}

{{/* For the operator, inside the release's namespace. */}}
{{- define "windlass.routeRules" -}}
# Write the gateway's routing table, with digests of tenants' keys. The chart makes the Secret, so that the operator need not create any.
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [{{ include "windlass.routesSecretName" . }}]
  verbs: [get, patch]
# Find the gateways, which tell what sleeping services are asked for.
- apiGroups: [""]
  resources: [pods]
  verbs: [list]
{{- end }}

{{/* A role and its binding to the gateway: (dict "root" $ "name" NAME "namespace" NAMESPACE "rules" RULES). */}}
{{- define "windlass.gatewayGrant" -}}
{{- $scope := empty .namespace | ternary "Cluster" "" }}
{{- $metadata := include "windlass.gatewayMetadata" (dict "root" .root "name" .name "namespace" .namespace) }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $scope }}Role
metadata:
  {{- $metadata | nindent 2 }}
rules:
  {{- .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $scope }}RoleBinding
metadata:
  {{- $metadata | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $scope }}Role
  name: {{ .name }}
subjects:
  - kind: ServiceAccount
    name: {{ include "windlass.gatewayAccountName" .root }}
    namespace: {{ include "windlass.namespace" .root }}
{{- end }}
