{{- define "tidings.name" -}}
{{- .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "tidings.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "tidings.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tidings.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tidings.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "tidings.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "tidings.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "tidings.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "tidings.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end }}

{{/* What has to be there is asked for with a sentence that says what to do. */}}
{{- define "tidings.check" -}}
{{- if eq .Values.database.kind "postgres" -}}
{{- if not .Values.database.existingSecret -}}
{{- fail "database.existingSecret must name the Secret that holds the PostgreSQL URL (or set database.kind=sqlite)" -}}
{{- end -}}
{{- if not (or .Values.masterKey.existingSecret (include "tidings.hasMasterKeyVariable" .)) -}}
{{- fail "masterKey.existingSecret must name the Secret that holds the master key: kubectl create secret generic tidings-master-key --from-literal=master-key=\"$(tidings master-key generate)\"" -}}
{{- end -}}
{{- end -}}
{{- range list "grpc-addr" "http-addr" "database-url" "database-max-connections" "master-key-file" "shutdown-grace" "grpc-tls-cert" "grpc-tls-key" -}}
{{- if hasKey $.Values.options . -}}
{{- fail (printf "options.%s has a value of its own in this chart" .) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "tidings.hasMasterKeyVariable" -}}
{{- range .Values.extraEnv -}}{{- if eq .name "TIDINGS_MASTER_KEY" -}}true{{- end -}}{{- end -}}
{{- end }}

{{/* The database and its key: what `serve` and `migrate` both need. */}}
{{- define "tidings.databaseEnv" -}}
{{- if eq .Values.database.kind "postgres" }}
- name: TIDINGS_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.database.existingSecret }}
      key: {{ .Values.database.existingSecretKey }}
- name: TIDINGS_DATABASE_MAX_CONNECTIONS
  value: {{ .Values.database.maxConnections | quote }}
{{- else }}
- name: TIDINGS_DATABASE_URL
  value: sqlite:///var/lib/tidings/tidings.db
{{- end }}
{{- if .Values.masterKey.existingSecret }}
- name: TIDINGS_MASTER_KEY_FILE
  value: /etc/tidings/master-key/{{ .Values.masterKey.existingSecretKey }}
{{- end }}
{{- range $name, $value := .Values.options }}
- name: {{ printf "TIDINGS_%s" ($name | upper | replace "-" "_") }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "tidings.serveEnv" -}}
- name: TIDINGS_GRPC_ADDR
  value: 0.0.0.0:50051
- name: TIDINGS_HTTP_ADDR
  value: 0.0.0.0:8080
- name: TIDINGS_SHUTDOWN_GRACE
  value: {{ printf "%ds" (int .Values.shutdown.graceSeconds) | quote }}
{{- if .Values.tls.existingSecret }}
- name: TIDINGS_GRPC_TLS_CERT
  value: /etc/tidings/tls/tls.crt
- name: TIDINGS_GRPC_TLS_KEY
  value: /etc/tidings/tls/tls.key
{{- end }}
{{- include "tidings.databaseEnv" . }}
{{- end }}

{{- define "tidings.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "tidings.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Keys are root's and readable by the group that fsGroup gives: what Tidings asks of such files. */}}
{{- define "tidings.volumes" -}}
{{- if .Values.masterKey.existingSecret }}
- name: master-key
  secret:
    secretName: {{ .Values.masterKey.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- if .Values.tls.existingSecret }}
- name: tls
  secret:
    secretName: {{ .Values.tls.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "tidings.volumeMounts" -}}
{{- if .Values.masterKey.existingSecret }}
- name: master-key
  mountPath: /etc/tidings/master-key
  readOnly: true
{{- end }}
{{- if .Values.tls.existingSecret }}
- name: tls
  mountPath: /etc/tidings/tls
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}
