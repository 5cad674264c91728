#!/bin/sh
# Write each secret of deploy/compose.yaml that is not there yet, and add people: deploy/secrets.sh [NAME ...]
# A person's password is read from standard input, a line each. Needs openssl alone.
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p secrets
cd secrets

# Users in containers have other ids, so each may read a file; nobody else comes past the folder.
write() { cat > "$1.part" && chmod 444 "$1.part" && mv "$1.part" "$1"; }
missing() { ! test -s "$1"; }
random() { openssl rand -hex "$1"; }

missing postgres_password && random 24 | write postgres_password
missing gyre_database_url &&
  printf 'postgresql://gyre:%s@postgres/gyre\n' "$(cat postgres_password)" | write gyre_database_url

missing redis_conf && printf 'requirepass %s\n' "$(random 24)" | write redis_conf
redis="redis://:$(cut -d' ' -f2 redis_conf)@redis:6379"
missing gyre_redis_url && printf '%s/0\n' "$redis" | write gyre_redis_url
missing airflow_broker_url && printf '%s/1\n' "$redis" | write airflow_broker_url

missing aws_access_key_id && random 10 | write aws_access_key_id
missing aws_secret_access_key && random 20 | write aws_secret_access_key
missing s3_config &&
  printf '{"identities": [{"name": "gyre", "actions": ["Admin", "Read", "List", "Tagging", "Write"],
  "credentials": [{"accessKey": "%s", "secretKey": "%s"}]}]}\n' \
  "$(cat aws_access_key_id)" "$(cat aws_secret_access_key)" | write s3_config

missing airflow_fernet && openssl rand -base64 32 | tr '+/' '-_' | write airflow_fernet
missing airflow_api && random 32 | write airflow_api
missing airflow_jwt && random 64 | write airflow_jwt
missing airflow_password && random 16 | write airflow_password
missing serving_tokens && printf 'first:%s\n' "$(random 24)" | write serving_tokens

# Addresses of Apprise that alerts go to, separated by blanks. Empty: alerts are lines of a file in GYRE_HOME.
# The webhook that Alertmanager of the profile `monitoring` sends to: deploy/prometheus/alertmanager.yml.
test -e alertmanager_url || { : > alertmanager_url; chmod 644 alertmanager_url; }
test -e gyre_alert_urls || { : > gyre_alert_urls; chmod 644 gyre_alert_urls; }

# Settings of librdkafka, and of Confluent's client for the schema registry: JSON, none by default.
test -e gyre_kafka || { echo '{}' > gyre_kafka; chmod 644 gyre_kafka; }
test -e gyre_schema_registry || { echo '{}' > gyre_schema_registry; chmod 644 gyre_schema_registry; }

# Signed by itself: put your own certificate and key in their place.
if missing tls_certificate; then
  domain="${DOMAIN:-localhost}"
  openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj "/CN=$domain" \
    -addext "subjectAltName=DNS:$domain,DNS:localhost,IP:127.0.0.1" \
    -keyout tls_key.new -out tls_certificate.new 2> /dev/null
  rm -f tls_key
  write tls_key < tls_key.new
  write tls_certificate < tls_certificate.new
  rm tls_key.new tls_certificate.new
fi

test -e htpasswd || { : > htpasswd; chmod 444 htpasswd; }
for person in "$@"; do
  IFS= read -r password || test -n "$password"
  line="$person:$(printf '%s\n' "$password" | openssl passwd -apr1 -stdin)"
  chmod 644 htpasswd
  { awk -F: -v person="$person" '$1 != person' htpasswd; printf '%s\n' "$line"; } > htpasswd.new
  cat htpasswd.new > htpasswd  # the same file: nginx has it mounted
  rm htpasswd.new
  chmod 444 htpasswd
done
