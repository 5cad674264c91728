"""Which edits of code and spec are news to a model."""

import pytest

from core import user_code
from core.settings import PROJECT
from core.spec.monitoring import Promotion
from core.spec.training import Estimator, Training
from tests.conftest import AS_OF
from tests.training.conftest import SHIPPED
from training.data import lineage

FOREST = Estimator(name="forest", type="shop.models:forest")
BOOST = Training(function="shop.models:boost")
MODELS = {
    "orders": SHIPPED.model_copy(update={"estimators": (FOREST,)}),
    "spend": SHIPPED.model_copy(update={"dataset": "spend"}),
    "own": SHIPPED.model_copy(update={"dataset": "spend", "training": BOOST}),
}
ALL = {*MODELS}
NEWS = {
    "core/spec/training.py": ALL,
    "feature_repo/published/service.py": ALL,
    "mlflow_server/model/pyfunc.py": ALL,
    "training/model/onnx_export.py": ALL,
    "shop/models.py": {"orders", "own"},
    "core/spec/monitoring.py": set(),
    "feature_engine/events/broker.py": set(),
    "training/stages/gate.py": set(),
    "feature_repo/datasets/orders.py": ALL,
    "feature_repo/datasets/spend.py": {"spend", "own"},
    "feature_repo/datasets/returns.py": set(),
}
"""The models of an edited file."""


def test_every_pattern_of_the_lineage_matches_a_file():
    assert [pattern for pattern in lineage.CODE if not [*PROJECT.glob(pattern)]] == []


def hashes():
    return {name: lineage.code_hash(spec) for name, spec in MODELS.items()}


def test_an_edited_file_is_news_only_to_models_that_depend_on_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lineage, "PROJECT", tmp_path)
    monkeypatch.setattr(lineage, "CLONE", tmp_path)
    monkeypatch.setattr(user_code, "PROJECT", tmp_path)
    datasets = tmp_path / "feature_repo" / "datasets"
    monkeypatch.setattr(user_code, "DATASETS", datasets)
    for name in NEWS:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("A = 1\n")
    imported = "from feature_repo.datasets.orders import A\n"
    (datasets / "spend.py").write_text(imported)
    for file, expected in NEWS.items():
        before = hashes()
        path = tmp_path / file
        path.write_text(path.read_text() + "\n")
        changed = {model for model, code in hashes().items() if code != before[model]}
        assert changed == expected, file


@pytest.mark.parametrize(
    ("change", "is_news"),
    [
        ({"seed": SHIPPED.seed + 1}, True),
        ({"gates": SHIPPED.gates[:1]}, True),
        ({"schedule": "@yearly"}, False),
        ({"promotion": Promotion(approval=True)}, False),
    ],
)
def test_a_changed_key_is_news_only_if_it_can_change_the_model(change, is_news):
    changed = SHIPPED.model_copy(update=change)
    before = lineage.fingerprint(SHIPPED, AS_OF, {"view": "a"})
    after = lineage.fingerprint(changed, AS_OF, {"view": "a"})
    assert (before != after) is is_news
