"""`python -m tests.support.training.zoo FOLDER [NAME …]`: save the models of the zoo, or some."""

import json
import sys
import warnings
from importlib import import_module
from pathlib import Path

import cloudpickle
import numpy as np
from mlflow.models import infer_signature

from tests.support.training.zoo.members import MAKERS, PACKAGES, Member

NAMES = Path(__file__).with_name("names.txt")
ZOO = "tests.support.training.zoo"
SPECIES = ("scikit", "boosters", "graphs", "pyfuncs")


def save(each: Member, folder: Path) -> None:
    signature = each.signature
    if signature is None:
        signature = infer_signature(each.rows, np.asarray(each.scores))
    module = import_module(each.flavor)
    arguments = {"signature": signature, **PACKAGES, **each.options}
    if isinstance(each.model, dict):
        module.save_model(path=str(folder / "model"), **each.model, **arguments)
    else:
        module.save_model(each.model, str(folder / "model"), **arguments)
    each.rows.to_parquet(folder / "rows.parquet")
    np.save(folder / "scores.npy", np.asarray(each.scores, np.float64))
    about = {
        "task": each.task,
        "classes": each.classes,
        "refusal": each.refusal,
        "features": dict(each.features),
        "trusted": [*each.trusted],
    }
    (folder / "about.json").write_text(json.dumps(about))


def main(folder: Path, names: list[str]) -> None:
    for species in SPECIES:
        import_module(f"{ZOO}.{species}")
    # As code of a team that is installed nowhere.
    cloudpickle.register_pickle_by_value(sys.modules[f"{ZOO}.pyfuncs"])
    listed_names = NAMES.read_text().split()
    if {*listed_names} != MAKERS.keys():
        wrong_names = MAKERS.keys() ^ {*listed_names}
        raise SystemExit(
            f"{NAMES}: in one list alone: {', '.join(sorted(wrong_names))}"
        )
    for name in sorted({*names}) or listed_names:
        place = folder / name
        place.mkdir(parents=True)
        save(MAKERS[name](), place)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), sys.argv[2:])
