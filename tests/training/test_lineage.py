"""Which edits of code and spec are news to a model."""

from datetime import UTC, datetime

import pytest

from core import user_code
from core.monitoring_spec import Promotion
from core.settings import PROJECT
from tests.training.conftest import SHIPPED
from training import lineage

BOTH = {"orders", "spend"}
NEWS = {
    "core/training_spec.py": BOTH,
    "feature_repo/service.py": BOTH,
    "mlflow_server/pyfunc.py": BOTH,
    "training/onnx_export.py": BOTH,
    "core/monitoring_spec.py": set(),
    "feature_repo/broker.py": set(),
    "training/gate.py": set(),
    "feature_repo/datasets/orders.py": BOTH,
    "feature_repo/datasets/spend.py": {"spend"},
    "feature_repo/datasets/returns.py": set(),
}
"""The models of an edited file."""


def test_every_pattern_of_the_lineage_matches_a_file():
    assert [pattern for pattern in lineage.CODE if not [*PROJECT.glob(pattern)]] == []


def test_an_edited_file_is_news_only_to_models_that_depend_on_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lineage, "PROJECT", tmp_path)
    monkeypatch.setattr(lineage, "CLONE", tmp_path)
    datasets = tmp_path / "feature_repo" / "datasets"
    monkeypatch.setattr(user_code, "DATASETS", datasets)
    for name in NEWS:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("A = 1\n")
    imported = "from feature_repo.datasets.orders import A\n"
    (datasets / "spend.py").write_text(imported)
    models = {name: SHIPPED.model_copy(update={"dataset": name}) for name in BOTH}
    for file, expected in NEWS.items():
        before = {name: lineage.code_hash(spec) for name, spec in models.items()}
        path = tmp_path / file
        path.write_text(path.read_text() + "\n")
        changed = {
            name
            for name, spec in models.items()
            if lineage.code_hash(spec) != before[name]
        }
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
    newest = datetime(2026, 11, 1, tzinfo=UTC)
    before = lineage.fingerprint(SHIPPED, newest, {"view": "a"})
    after = lineage.fingerprint(
        SHIPPED.model_copy(update=change), newest, {"view": "a"}
    )
    assert (before != after) is is_news
