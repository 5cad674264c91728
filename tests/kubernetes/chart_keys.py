"""Writes airflow_chart.txt: the values that Airflow's chart knows, by its package.

    helm pull apache-airflow/airflow --version 1.22.0
    python tests/kubernetes/chart_keys.py airflow-1.22.0.tgz

Make the list anew for each release that docs/how-to/kubernetes.md names. Today's comes from a package
of 1.22.0 that was made before the release; release 1.21.0 has the same keys.
"""

import json
import sys
import tarfile
from pathlib import Path

import yaml

LIST = Path(__file__).parent / "airflow_chart.txt"


def keys_of(schema, definitions, parent=""):
    """Yield the path of each value of a chart that is not deprecated.

    Args:
        schema: Part of `values.schema.json`.
        definitions: What its references name.
        parent: The path of that part.

    Yields:
        `labels.*` for a mapping whose keys are free, `redis.enabled true` for a switch with what it
        is unless set, else a path alone.
    """
    for name, value in schema["properties"].items():
        path = f"{parent}.{name}" if parent else name
        definition = value.get("$ref", "").removeprefix("#/definitions/")
        # Kubernetes' own types are checked by its own schemas.
        is_chart = definition and not definition.startswith("io.k8s.")
        resolved = definitions[definition] | value if is_chart else value
        if "deprecated" in resolved.get("description", "").lower():
            continue
        if "properties" in resolved:
            yield path
            yield from keys_of(resolved, definitions, path)
        elif "object" in resolved.get("type", ""):
            yield f"{path}.*"
        elif name == "enabled":
            yield f"{path} {json.dumps(resolved.get('default'))}"
        else:
            yield path


def main(package):
    with tarfile.open(package) as files:
        chart = yaml.safe_load(files.extractfile("airflow/Chart.yaml"))
        schema = json.load(files.extractfile("airflow/values.schema.json"))
    keys = sorted(keys_of(schema, schema["definitions"]))
    LIST.write_text("\n".join([f"# airflow {chart['version']}", *keys, ""]))


if __name__ == "__main__":
    main(sys.argv[1])
