{{/* The prefix of names. Short enough for every suffix. */}}
{{- define "longshore.fullname" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- end -}}
{{- include "longshore.fit" (dict "text" $name "limit" 45) -}}
{{- end -}}

{{/* A text as a DNS label of at most `limit` characters: cut and made unique by a hash where it would not be one. */}}
{{- define "longshore.fit" -}}
{{- $label := .text | replace "." "-" -}}
{{- if and (eq $label .text) (le (len $label) (int .limit)) -}}
{{- $label -}}
{{- else -}}
{{- printf "%s-%s" (trunc (int (sub .limit 9)) $label | trimSuffix "-") (sha256sum .text | trunc 8) -}}
{{- end -}}
{{- end -}}

{{/* For objects outside of the release's namespace: two releases of one name may stand in one cluster. */}}
{{- define "longshore.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "longshore.fullname" .) -}}
{{- end -}}

{{- define "longshore.installation" -}}
{{- if .Values.installation -}}
{{- .Values.installation -}}
{{- else -}}
{{- include "longshore.fit" (dict "text" (printf "%s-%s" .Release.Namespace .Release.Name) "limit" 63) -}}
{{- end -}}
{{- end -}}

{{- define "longshore.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* Labels of every object. */}}
{{- define "longshore.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: longshore
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* An image: the override, or the registry, the name and the tag. */}}
{{- define "longshore.image" -}}
{{- $values := .root.Values -}}
{{- if .override -}}
{{- .override -}}
{{- else -}}
{{- printf "%s/%s:%s" (trimSuffix "/" $values.image.registry) .name ($values.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "longshore.operatorImage" -}}
{{- include "longshore.image" (dict "root" . "name" "longshore-operator" "override" .Values.operator.image) -}}
{{- end -}}

{{- define "longshore.serviceAccount" -}}
{{- $own := printf "%s-operator" (include "longshore.fullname" .) -}}
{{- .Values.serviceAccount.name | default (ternary $own "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{/* "namespace/name" of the Broker to create, or nothing: where the operator doesn't look, nobody would serve it. */}}
{{- define "longshore.defaultBroker" -}}
{{- $namespace := .Values.defaultBroker.namespace | default .Release.Namespace -}}
{{- if and .Values.defaultBroker.enabled (or (not .Values.watchNamespaces) (has $namespace .Values.watchNamespaces)) -}}
{{- printf "%s/%s" $namespace .Values.defaultBroker.name -}}
{{- end -}}
{{- end -}}

{{/* What the operator may do in the namespaces that it looks after. Verb by verb; Secrets are never listed or watched. */}}
{{- define "longshore.rules" -}}
# Create: the default Broker.
- apiGroups: [longshore.dev]
  resources: [brokers]
  verbs: [list, watch, create]
# Patch: finalizers. The operator never writes a spec.
- apiGroups: [longshore.dev]
  resources: [queues]
  verbs: [list, watch, patch]
- apiGroups: [longshore.dev]
  resources: [workers]
  verbs: [list, watch]
# Get: whether a completion's workflow is really gone. Patch: finalizers. Delete: ttlAfterFinished.
- apiGroups: [longshore.dev]
  resources: [workflows]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [longshore.dev]
  resources: [brokers/status, queues/status, workers/status, workflows/status]
  verbs: [update]
# Patch: conditions alone, on a status that a newer operator wrote.
- apiGroups: [longshore.dev]
  resources: [workflows/status]
  verbs: [patch]
# Get: whether a name is somebody else's. Create and patch: server-side apply.
- apiGroups: [apps]
  resources: [deployments, statefulsets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [configmaps, services]
  verbs: [get, list, watch, create, patch]
# The token of an embedded Broker, and those that Brokers elsewhere name.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch]
# Patch: the deletion cost, so that idle pods go first.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{/* What the hook may do: remove finalizers, nothing else. */}}
{{- define "longshore.cleanupRules" -}}
- apiGroups: [longshore.dev]
  resources: [queues, workflows]
  verbs: [get, list, patch]
{{- end -}}

{{/* Restricted pod security. */}}
{{- define "longshore.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "longshore.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}
