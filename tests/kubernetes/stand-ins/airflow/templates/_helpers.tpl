{{/* Of every object and every pod. Most have one more, the component. */}}
{{- define "gyre.labels" -}}
tier: airflow
release: {{ .Release.Name }}
{{- range $name, $value := .Values.labels }}
{{ $name }}: {{ toJson $value }}
{{- end }}
{{- end }}

{{- define "gyre.image" -}}
{{ .Values.defaultAirflowRepository }}:{{ .Values.defaultAirflowTag }}
{{- end }}

{{/* Of each pod but a task's: it starts again when the ConfigMap changes, whose files do not change in a pod. */}}
{{- define "gyre.checksum" -}}
{{ include (print .Template.BasePath "/config.yaml") . | sha256sum }}
{{- end }}

{{/* Of each container but the sidecar. */}}
{{- define "gyre.environment" -}}
envFrom:
  {{- tpl .Values.extraEnvFrom . | trim | nindent 2 }}
env:
  - { name: AIRFLOW_HOME, value: /opt/airflow }
  {{- tpl .Values.extraEnv . | trim | nindent 2 }}
{{- end }}

{{/* Of each container but the sidecar. */}}
{{- define "gyre.mounts" -}}
- { name: config, mountPath: /opt/airflow/airflow.cfg, subPath: airflow.cfg, readOnly: true }
- name: config
  mountPath: /opt/airflow/config/airflow_local_settings.py
  subPath: airflow_local_settings.py
  readOnly: true
{{- include "gyre.mounts of values" . }}
{{- end }}

{{- define "gyre.mounts of values" -}}
{{- range .Values.volumeMounts }}
- {{ toJson . }}
{{- end }}
{{- end }}

{{/* The API alone has no folder of logs without a claim. */}}
{{- define "gyre.logs" -}}
{{- if .Values.logs.persistence.enabled -}}
- { name: logs, persistentVolumeClaim: { claimName: {{ .Release.Name }}-logs } }
{{- else -}}
- { name: logs, emptyDir: {} }
{{- end }}
{{- end }}

{{- define "gyre.volumes" -}}
- { name: config, configMap: { name: {{ .Release.Name }}-config } }
{{- range .Values.volumes }}
- {{ toJson . }}
{{- end }}
{{- end }}
