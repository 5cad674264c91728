"""Which edits of code and spec are news to a model."""

import shutil

import pytest

from core import user_code
from core.project import CLONE
from core.spec.monitoring import Promotion
from core.spec.training import Estimator, Training
from tests.conftest import AS_OF
from tests.training.conftest import SHIPPED
from training import code_hash, inputs

COPIED = shutil.ignore_patterns("__pycache__", "*.pyc")
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
    "feature_repo/extensions/asof_join.py": ALL,
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
"""The models that an edit of a file is news to."""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Gyre's packages, as they are, with other datasets and a package of a user."""
    folder = tmp_path_factory.mktemp("clone")
    for package in code_hash.PACKAGES:
        shutil.copytree(CLONE / package, folder / package, ignore=COPIED)
    datasets = folder / "feature_repo" / "datasets"
    (folder / "shop").mkdir()
    (folder / "shop" / "models.py").write_text("A = 1\n")
    (datasets / "orders.py").write_text("A = 1\n")
    (datasets / "returns.py").write_text("A = 1\n")
    imported = "from feature_repo.datasets.orders import A\n"
    (datasets / "spend.py").write_text(imported)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_hash, "PROJECT", folder)
        patch.setattr(code_hash, "CLONE", folder)
        patch.setattr(user_code, "PROJECT", folder)
        patch.setattr(user_code, "DATASETS", datasets)
        yield folder


def hashes():
    return {name: code_hash.code_hash(spec) for name, spec in MODELS.items()}


def edit(path):
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize("file", NEWS)
def test_an_edited_file_is_news_only_to_models_that_depend_on_it(clone, file):
    before = hashes()
    edit(clone / file)
    changed = {model for model, code in hashes().items() if code != before[model]}
    assert changed == NEWS[file]


def test_each_edited_file_that_makes_a_model_is_news_and_no_other_file_is(clone):
    spec = MODELS["orders"]
    makes_model = {*code_hash.product_files(clone)}
    makes_model |= {clone / name for name, models in NEWS.items() if "orders" in models}
    news = set()
    last_hash = code_hash.code_hash(spec)
    for path in clone.rglob("*.py"):
        edit(path)
        new_hash = code_hash.code_hash(spec)
        if new_hash != last_hash:
            news.add(path)
        last_hash = new_hash
    assert news == makes_model


def test_each_module_that_does_not_count_is_imported_by_one_that_does():
    """An entry that no import reaches would be stale."""
    imported = set()
    for file in code_hash.product_files(CLONE):
        imported |= {*code_hash.imported_modules(file)}
    for prefix in code_hash.WITHOUT_EFFECT:
        assert any(name.startswith(prefix) for name in imported), prefix


def test_every_package_that_a_counted_file_imports_is_known():
    packages = {path.parent.name for path in CLONE.glob("*/__init__.py")}
    for file in code_hash.product_files(CLONE):
        for name in code_hash.imported_modules(file):
            root = name.partition(".")[0]
            assert root in code_hash.PACKAGES or root not in packages, file


@pytest.mark.parametrize(
    ("change", "is_news"),
    [
        ({"seed": SHIPPED.seed + 1}, True),
        ({"gates": SHIPPED.gates[:1]}, True),
        ({"schedule": "@yearly"}, False),
        ({"description": "Who leaves?"}, False),
        ({"promotion": Promotion(approval=True)}, False),
    ],
)
def test_a_changed_key_is_news_only_if_it_can_change_the_model(change, is_news):
    changed = SHIPPED.model_copy(update=change)
    before = inputs.fingerprint(SHIPPED, AS_OF, {"view": "a"})
    after = inputs.fingerprint(changed, AS_OF, {"view": "a"})
    assert (before != after) is is_news
