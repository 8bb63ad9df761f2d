{{- define "glinthawk.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "glinthawk.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains "glinthawk" .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-glinthawk" .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "glinthawk.operator" -}}
{{- printf "%s-operator" (include "glinthawk.fullname" .) }}
{{- end }}

{{- define "glinthawk.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "glinthawk.operator" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "glinthawk.selector" -}}
app.kubernetes.io/name: glinthawk-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "glinthawk.labels" -}}
{{ include "glinthawk.selector" . }}
{{ include "glinthawk.release" . }}
{{- end }}

{{- define "glinthawk.release" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* An image of the release: context and the key of its name in .Values.images. */ -}}
{{- define "glinthawk.image" -}}
{{- $context := index . 0 }}{{- $values := $context.Values }}
{{- $name := index $values.images (index . 1) }}
{{- $tag := default $context.Chart.AppVersion $values.image.tag }}
{{- if $values.image.registry }}{{ trimSuffix "/" $values.image.registry }}/{{ end }}{{ $name }}:{{ $tag }}
{{- end }}

{{- /* Whether something that is off, on or auto is made: context, value, API version, kind. */ -}}
{{- define "glinthawk.isOn" -}}
{{- $context := index . 0 }}{{- $value := index . 1 }}
{{- if or (has (toString $value) (list "on" "true")) (and (eq (toString $value) "auto") ($context.Capabilities.APIVersions.Has (index . 2))) }}true{{ end }}
{{- end }}

{{- define "glinthawk.testDeployment" -}}
{{- default .Values.sample.name .Values.test.deployment }}
{{- end }}
