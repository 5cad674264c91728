"""The stages of dvc.yaml as a Kubeflow pipeline: `make pipelines` compiles it to kubeflow.yaml.

A task is one command of Gyre in the team's image, which has KFP too (docs/how-to/pipelines.md).
Where rows, models and ledger are, the settings say that its pods have: nothing is passed on but a
report. Only KFP is imported here.
"""

from pathlib import Path

from kfp import compiler, dsl

IMAGE = "gyre-kubeflow"
FOLDER = Path(__file__).parent


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def stage(command: str) -> str:
    """Run a command of the shell; return what it reported."""
    import subprocess  # noqa: PLC0415  (KFP takes this function alone)

    done = subprocess.run(
        ["sh", "-ec", command], check=True, stdout=subprocess.PIPE, text=True
    )
    print(done.stdout)  # noqa: T201  (the pod's log)
    return done.stdout


@dsl.pipeline(
    name="gyre", description="From rows to a version in production that is watched."
)
def loop(model: str = "customer_churn_model", dataset: str = "orders") -> None:
    """Run the stages one after another; a stage that fails ends it."""
    publish = (
        'eval "$(gyre env)" && cd "${GYRE_PROJECT:-.}/feature_repo" && feast apply'
    )
    commands = {
        "check": f"gyre check {model}",
        "publish": publish,
        "ingest": f"gyre ingest {dataset} --json",
        "train": f"gyre train {model} --reason pipeline --json",
        "evaluate": f"gyre evaluation {model} --json",
        "score": f"gyre score {model} --json",
        "monitor": f"gyre monitor {model} --json",
    }
    last = None
    for name, command in commands.items():
        task = stage(command=command).set_display_name(name)
        task.set_caching_options(
            enable_caching=False
        )  # rows come without a change of inputs
        if last is not None:
            task.after(last)
        last = task


if __name__ == "__main__":
    compiler.Compiler().compile(loop, str(FOLDER / "kubeflow.yaml"))
