set -eu
as="setpriv --reuid=postgres --regid=postgres --clear-groups"
if ! test -s "$PGDATA/PG_VERSION"; then
  install -d -o postgres -m 700 "$PGDATA"
  install -m 600 -o postgres "$POSTGRES_PASSWORD_FILE" /tmp/password
  $as initdb -D "$PGDATA" -U "$POSTGRES_USER" -A scram-sha-256 -E UTF8 --pwfile=/tmp/password > /dev/null
  printf 'host all all all scram-sha-256\n' >> "$PGDATA/pg_hba.conf"
  printf 'CREATE DATABASE %s;\n' "$POSTGRES_DB" | $as postgres --single -D "$PGDATA" postgres > /dev/null
fi
exec $as postgres -D "$PGDATA" -c listen_addresses='*'
