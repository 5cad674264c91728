# Every program of Spark reads this as it starts. The keys of S3 come from the files that Gyre reads and are part of each
# host's own environment: no job carries them.
for file in "${GYRE_SECRETS_DIR:-/run/secrets}"/aws_*; do
  name=$(basename "$file" | tr a-z A-Z)
  test ! -e "$file" || test -n "${!name}" || export "$name=$(cat "$file")"
done
# A pod's name is known to itself alone: the others reach a driver by its address.
if test -n "$KUBERNETES_SERVICE_HOST" && test -z "$SPARK_LOCAL_HOSTNAME"; then
  SPARK_LOCAL_HOSTNAME=$(hostname -i | cut -d' ' -f1)
fi
