"""How many of 20 versions, of three estimators, come out the same when built again.

    python -m benchmarks.reproductions [versions, 20 if not given]

Each version is trained as of another day of the shipped history by the estimator whose turn it is,
then built again in a folder and process of its own by `gyre reproduce`. Its gates always pass: a
version that is no good has to come out the same too. Exit code 1 unless all do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from benchmarks.ingest import AS_OF
from benchmarks.training import MODEL, prepare
from stack.environment import process_environment
from stack.settings import load_settings
from stack.spec import Limit, load_spec
from tests.conftest import BIN

VERSIONS = 20
OPEN = Limit(metric="log_loss", rule="at_most", value=100)


def main(versions: int) -> int:
    from training import chain  # noqa: PLC0415  (heavy)

    same, spec = 0, load_spec(MODEL)
    with tempfile.TemporaryDirectory(prefix="gyre-bench-") as name, ExitStack() as opened:
        home = Path(name) / "home"
        prepare(home, 1, opened)
        settings = load_settings(home=home)
        for number in range(versions):
            estimator = spec.estimators[number % len(spec.estimators)]
            mine = spec.model_copy(update={"estimators": (estimator,), "gates": (OPEN,)})
            as_of = AS_OF - timedelta(days=7 * (versions - 1 - number))
            made = chain.train(settings, mine, as_of, key=f"bench-{number}", reason="bench",
                               who="bench", force=True)  # fmt: skip
            began = time.perf_counter()
            again = subprocess.run(
                [str(BIN / "gyre"), "reproduce", MODEL, str(made.version), "--json"],
                env=process_environment(settings), check=False, capture_output=True, text=True,
            )  # fmt: skip
            came = again.returncode == 0 and json.loads(again.stdout)["reproduced"]
            same += came
            said = "the same" if came else again.stdout + again.stderr
            what = f"version {made.version}, {estimator.name}, {as_of:%Y-%m-%d}"
            print(f"{what}: {said}, {time.perf_counter() - began:.0f} s")
    print(f"{same} of {versions} the same")
    return 0 if same == versions else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else VERSIONS))
