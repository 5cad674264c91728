"""What of the code is a model's: its own dataset's and what that imports, no other model's."""

from __future__ import annotations

from core import user_code
from core.settings import PROJECT
from core.spec import load_spec
from training import lineage

FILES = ("training/gate.py", "feature_repo/service.py", "feature_repo/engines/spark.py",
         "core/spec.py", "mlflow_server/pyfunc.py")  # fmt: skip
OTHERS = ("training/summary.py", "feature_repo/broker.py", "feature_repo/parity.py")


def test_every_pattern_names_files():
    assert [pattern for pattern in lineage.CODE if not [*PROJECT.glob(pattern)]] == []


def test_code_is_that_of_every_model_and_of_its_own_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr(lineage, "PROJECT", tmp_path)
    monkeypatch.setattr(lineage, "CLONE", tmp_path)
    datasets = tmp_path / "feature_repo" / "datasets"
    monkeypatch.setattr(user_code, "DATASETS", datasets)
    own = {
        "orders.py": "A = 1",
        "spend.py": "from feature_repo.datasets.orders import A",
    }
    places = {name: tmp_path / name for name in (*FILES, *OTHERS)}
    places |= {name: datasets / name for name in own}
    for name, path in places.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(own.get(name) or (PROJECT / name).read_text())
    churn = load_spec("customer_churn_model")
    models = {
        each: churn.model_copy(update={"dataset": each}) for each in ("orders", "spend")
    }

    def changed(path):
        before = {name: lineage.code_hash(spec) for name, spec in models.items()}
        path.write_text(path.read_text() + "\n" if path.exists() else "")
        return {
            name
            for name, spec in models.items()
            if lineage.code_hash(spec) != before[name]
        }

    assert changed(datasets / "returns.py") == set()
    assert [changed(places[name]) for name in OTHERS] == [set()] * 3
    assert changed(places["spend.py"]) == {"spend"}
    assert [changed(places[name]) for name in ("orders.py", *FILES)] == [
        {"orders", "spend"}
    ] * 6
