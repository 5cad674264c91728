"""What of code and spec is a model's: what makes it, and its own dataset; no other model's."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from core import user_code
from core.monitoring_spec import Promotion
from core.settings import PROJECT
from core.spec import load_spec
from training import lineage

CHURN = load_spec("customer_churn_model")
MAKERS = (
    "core/training_spec.py",
    "feature_repo/lookup_writer.py",
    "feature_repo/service.py",
    "mlflow_server/pyfunc.py",
    "training/onnx_export.py",
)
OTHERS = (
    "core/monitoring_spec.py",
    "feature_repo/broker.py",
    "feature_repo/engines/online_waves.py",
    "training/gate.py",
    "training/summary.py",
)
DATASETS = {
    "orders.py": "A = 1",
    "spend.py": "from feature_repo.datasets.orders import A",
}


def test_every_pattern_names_files():
    assert [pattern for pattern in lineage.CODE if not [*PROJECT.glob(pattern)]] == []


@pytest.fixture
def changed_models(tmp_path, monkeypatch):
    """Edit a file of a copy of the code; return the models whose hash is another then."""
    monkeypatch.setattr(lineage, "PROJECT", tmp_path)
    monkeypatch.setattr(lineage, "CLONE", tmp_path)
    datasets = tmp_path / "feature_repo" / "datasets"
    monkeypatch.setattr(user_code, "DATASETS", datasets)
    for name in (*MAKERS, *OTHERS):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((PROJECT / name).read_text())
    datasets.mkdir(parents=True)
    for name, text in DATASETS.items():
        (datasets / name).write_text(text)
    models = {
        name: CHURN.model_copy(update={"dataset": name}) for name in ("orders", "spend")
    }

    def hashes():
        return {name: lineage.code_hash(spec) for name, spec in models.items()}

    def edit(file):
        before = hashes()
        path = tmp_path / file
        path.write_text(path.read_text() + "\n" if path.exists() else "")
        after = hashes()
        return {name for name in models if after[name] != before[name]}

    return edit


@pytest.mark.parametrize(
    ("file", "models"),
    [
        *((name, {"orders", "spend"}) for name in MAKERS),
        *((name, set()) for name in OTHERS),
        ("feature_repo/datasets/orders.py", {"orders", "spend"}),
        ("feature_repo/datasets/spend.py", {"spend"}),
        ("feature_repo/datasets/returns.py", set()),
    ],
)
def test_an_edit_is_news_to_the_models_that_the_file_makes(
    changed_models, file, models
):
    assert changed_models(file) == models


@pytest.mark.parametrize(
    ("change", "is_news"),
    [
        ({"seed": CHURN.seed + 1}, True),
        ({"gates": CHURN.gates[:1]}, True),
        ({"schedule": "@yearly"}, False),
        ({"promotion": Promotion(approval=True)}, False),
        (
            {"monitoring": CHURN.monitoring.model_copy(update={"fewest": 10**6})},
            False,
        ),
    ],
)
def test_a_key_that_cannot_change_a_model_is_no_news(change, is_news):
    newest = datetime(2026, 11, 1, tzinfo=UTC)
    before = lineage.fingerprint(CHURN, newest, {"view": "a"})
    after = lineage.fingerprint(CHURN.model_copy(update=change), newest, {"view": "a"})
    assert (before != after) is is_news
