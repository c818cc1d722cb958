{{/*
What the operator may do. The comment above each rule says why; docs/reference/rbac.md is made from them. Reads cannot be
narrowed to the operator's own objects, because RBAC knows no label selectors.
*/}}

{{/* Kinds inside namespaces: everywhere, or in the namespaces of watchNamespaces. */}}
{{- define "windlass.namespacedRules" -}}
# Read what users want.
- apiGroups: [windlass.dev]
  resources: [inferenceservices, batchinferences]
  verbs: [get, list, watch]
# Report what became of it. Their spec, labels and annotations are never written.
- apiGroups: [windlass.dev]
  resources: [inferenceservices/status, batchinferences/status]
  verbs: [patch]
# Run replicas.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
# Run the workers of batches.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
# Tell old replicas from new ones during a rollout, and quota refusals from a slow start.
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get, list, watch]
# Count devices in use, and tell why a replica does not start.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# Let the pod with the least to lose go first when a service shrinks: its deletion cost.
- apiGroups: [""]
  resources: [pods]
  verbs: [patch]
# Learn what replicas compute, before one is stopped.
- apiGroups: [custom.metrics.k8s.io]
  resources: [pods/windlass_requests_running, pods/windlass_requests_waiting, pods/windlass_kv_use_ratio]
  verbs: [get]
# Let replicas claim devices by dynamic resource allocation, one claim per pod.
- apiGroups: [resource.k8s.io]
  resources: [resourceclaimtemplates]
  verbs: [get, list, watch, create, patch, delete]
# See which devices claims were given, and so which are free.
- apiGroups: [resource.k8s.io]
  resources: [resourceclaims]
  verbs: [get, list, watch]
# Give each service its launch settings, an address, and an account without a token.
- apiGroups: [""]
  resources: [configmaps, services, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
# Let services scale by load.
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
# Say why Kueue holds pods back, where the cluster has it.
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
{{- if .Values.fleet.httpRouteGateway }}
# Share traffic out through the Gateway API, where the cluster has it.
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, create, patch, delete]
{{- end }}
{{- if .Values.fleet.endpointPicker }}
# Send to pools of replicas with an endpoint picker, where the cluster has the inference extension.
- apiGroups: [inference.networking.k8s.io]
  resources: [inferencepools]
  verbs: [get, create, patch, delete]
{{- end }}
{{- if .Values.fleet.meshRoutes }}
# The same through Istio.
- apiGroups: [networking.istio.io]
  resources: [virtualservices]
  verbs: [get, create, patch, delete]
{{- end }}
{{- if .Values.fleet.prometheusUrl }}
# The same through KEDA, where the cluster has it.
- apiGroups: [keda.sh]
  resources: [scaledobjects]
  verbs: [get, create, patch, delete]
{{- end }}
# Keep enough replicas ready while nodes are drained.
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
# Let only the gateway, metrics and the tenant itself reach replicas.
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# Bound what a tenant's namespaces may use.
- apiGroups: [""]
  resources: [resourcequotas, limitranges]
  verbs: [get, list, watch, create, patch, delete]
# Let a tenant's members work in its namespaces; Kubernetes refuses to grant more than the operator itself holds.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch, delete]
# Tell people who use `kubectl describe` what changed.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}

{{/* Kinds outside namespaces: always for the whole cluster. */}}
{{- define "windlass.clusterRules" -}}
# Read what the platform team wants.
- apiGroups: [windlass.dev]
  resources: [tenants, gpuclasses]
  verbs: [get, list, watch]
# Report what became of it.
- apiGroups: [windlass.dev]
  resources: [tenants/status, gpuclasses/status]
  verbs: [patch]
# Know which nodes carry which devices.
- apiGroups: [""]
  resources: [nodes]
  verbs: [get, list, watch]
# Know which devices drivers offer for claims.
- apiGroups: [resource.k8s.io]
  resources: [resourceslices, deviceclasses]
  verbs: [get, list, watch]
# Learn who serves the metrics of autoscalers.
- apiGroups: [apiregistration.k8s.io]
  resources: [apiservices]
  resourceNames: [v1beta2.custom.metrics.k8s.io, v1beta1.custom.metrics.k8s.io, v1beta1.external.metrics.k8s.io]
  verbs: [get]
# See which namespaces a tenant has.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get, list, watch]
# Make a tenant's namespaces and keep their Pod Security labels. They are never deleted.
- apiGroups: [""]
  resources: [namespaces]
  {{- with .Values.watchNamespaces }}
  resourceNames:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  verbs: [create, patch]
# See whether the tiers are in place.
- apiGroups: [scheduling.k8s.io]
  resources: [priorityclasses]
  verbs: [get, list, watch]
# Keep the three tiers in place. Server-side apply is one of the few creates that are held to a name.
- apiGroups: [scheduling.k8s.io]
  resources: [priorityclasses]
  resourceNames: [windlass-realtime, windlass-standard, windlass-batch]
  verbs: [create, patch]
{{- end }}

{{/* What Tenants grant to their members, render/tenant.py. The operator uses none of it. */}}
{{- define "windlass.grantedRules" -}}
# Members read their services and batches.
- apiGroups: [windlass.dev]
  resources: [inferenceservices, inferenceservices/status, batchinferences, batchinferences/status]
  verbs: [get, list, watch]
# Members see what became of their services.
- apiGroups: [""]
  resources: [pods, pods/log, events, services, resourcequotas]
  verbs: [get, list, watch]
# Members see what became of their services.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [get, list, watch]
# Members see what became of their services.
- apiGroups: [apps]
  resources: [deployments, replicasets]
  verbs: [get, list, watch]
# Members see what became of their batches.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch]
# Members see what became of their services.
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch]
# Editors write their services and batches.
- apiGroups: [windlass.dev]
  resources: [inferenceservices, batchinferences]
  verbs: [create, update, patch, delete]
# Editors scale their services.
- apiGroups: [windlass.dev]
  resources: [inferenceservices/scale]
  verbs: [get, update, patch]
{{- end }}

{{/* Inside the operator's own namespace. */}}
{{- define "windlass.leaseRules" -}}
# Make the leader election's Lease; a create cannot be held to a name.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
# Take, renew and give back the leadership.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ default "windlass-operator" .Values.operator.leaseName }}]
  verbs: [get, update]
{{- end }}

{{/* Inside the namespace `default`, when watchNamespaces is set. */}}
{{- define "windlass.clusterEventRules" -}}
# Events about Tenants and GPUClasses: Kubernetes keeps those of cluster-scoped objects in this namespace.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}

{{/* A role and its binding to the operator: (dict "root" $ "name" NAME "namespace" NAMESPACE "rules" RULES); without namespace for the whole cluster. */}}
{{- define "windlass.grant" -}}
{{- $scope := empty .namespace | ternary "Cluster" "" }}
{{- $metadata := include "windlass.metadata" (dict "root" .root "name" .name "namespace" .namespace) }}
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
    name: {{ include "windlass.accountName" .root }}
    namespace: {{ include "windlass.namespace" .root }}
{{- end }}
