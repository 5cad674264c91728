"""Commands that people wait for: REST and SQL only, without what trains and monitors."""

import json
import subprocess
import sys

from core.settings import PROJECT
from mlflow_server.served_model import CONTRACT_FILE, ONNX_FILE, digest_tags
from stack.environment import process_environment
from tests.conftest import mlflow_server, new_settings
from tests.mlflow_server.conftest import client

MODEL = "customer_churn_model"
HEAVY = {"mlflow", "pandas", "scipy", "feast", "pyarrow", "duckdb", "evidently"}
RUN = """
import json, sys
from cli.main import app
sys.argv = ["gyre", *sys.argv[1:]]
try:
    app()
except SystemExit as end:
    print(json.dumps([end.code, sorted(sys.modules)]), file=sys.stderr)
"""


def register(settings, folder):
    """Register the model's next version, with files that are those registered."""
    api = client(settings)
    info = api.create_run("0").info
    for name, place in ((ONNX_FILE, "model"), (CONTRACT_FILE, "model/extra_files")):
        (folder / name).write_text("any bytes")
        api.log_artifact(info.run_id, str(folder / name), place)
    source = f"{info.artifact_uri}/model"
    api.create_model_version(MODEL, source, info.run_id, digest_tags(folder))


def test_promotions_and_help_import_no_heavy_package(tmp_path):
    settings = new_settings(tmp_path / "home")
    with mlflow_server(settings):
        client(settings).create_registered_model(MODEL)
        register(settings, tmp_path)
        register(settings, tmp_path)
        for arguments in (
            "--help",
            f"promote {MODEL} 1 --reason better",
            f"promote {MODEL} 2 --reason better",
            f"rollback {MODEL} --reason better",
            f"ledger {MODEL}",
        ):
            done = subprocess.run(
                [sys.executable, "-c", RUN, *arguments.split()], cwd=PROJECT,
                env=process_environment(settings), capture_output=True, check=False,
            )  # fmt: skip
            code, modules = json.loads(done.stderr.splitlines()[-1])
            assert code == 0, done.stderr
            assert HEAVY.isdisjoint(modules), arguments
            assert len(modules) < 1_000, arguments
