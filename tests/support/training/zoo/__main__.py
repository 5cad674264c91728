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
    for make in MAKERS:
        each = make()
        if names and each.name not in names:
            continue
        place = folder / each.name
        place.mkdir(parents=True)
        save(each, place)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), sys.argv[2:])
