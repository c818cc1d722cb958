{{/* Names, labels and annotations that all templates share. */}}

{{- define "windlass.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "windlass.operatorName" -}}
{{ include "windlass.fullname" . }}-operator
{{- end }}

{{/* Also the `job` label of the operator's metrics. */}}
{{- define "windlass.metricsName" -}}
{{ include "windlass.operatorName" . }}-metrics
{{- end }}

{{- define "windlass.namespace" -}}
{{ default .Release.Namespace .Values.namespaceOverride }}
{{- end }}

{{- define "windlass.accountName" -}}
{{ default (ternary (include "windlass.operatorName" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{/* Frozen: a Deployment's selector is immutable, so a release that changes these labels cannot upgrade. */}}
{{- define "windlass.selectorLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "windlass.labels" -}}
{{- $ours := dict
  "app.kubernetes.io/name" "windlass"
  "app.kubernetes.io/instance" .Release.Name
  "app.kubernetes.io/component" "operator"
  "app.kubernetes.io/part-of" "windlass"
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/managed-by" .Release.Service
  "helm.sh/chart" (printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_"))
}}
{{- toYaml (merge $ours (.Values.commonLabels | default dict)) }}
{{- end }}

{{/* metadata of one object: (dict "root" $ "name" NAME "namespace" NAMESPACE "labels" {} "annotations" {}); all but root and name may be absent. */}}
{{- define "windlass.metadata" -}}
name: {{ .name }}
{{- with .namespace }}
namespace: {{ . }}
{{- end }}
labels:
  {{- toYaml (merge (include "windlass.labels" .root | fromYaml) (.labels | default dict)) | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) (.root.Values.commonAnnotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
