"""A dataset's module that is wrong is named, and no other dataset is touched by it."""

import json
import os
import shutil
import subprocess
from dataclasses import replace

import pyarrow as pa
import pytest
from feast.repo_operations import get_repo_files

from cli.use_case import _require_entity_type
from core.errors import SettingsError
from feature_repo.datasets import entity_problems
from feature_repo.published.config import write_feast_config
from gyre import PROJECT
from tests.conftest import new_settings
from tests.support.feature_engine.shop import ORDERS
from tests.support.tools.clone import Copy
from tests.support.tools.preloaded import commands_folder

READ = """
import json
from feature_repo.datasets import dataset_of, load_dataset, load_datasets
datasets, problems = load_datasets()
owner = dataset_of("customer_features")
try:
    load_dataset("money")
except Exception as exc:
    helper = str(exc)
names = [dataset.name for dataset in datasets]
print(json.dumps([names, problems, owner.name, helper]))
"""
NAMES = """
import json, sys
from core.user_code import dataset_modules, dataset_names
names = sys.argv[1:]
modules = [module.stem for module in dataset_modules(*names)]
print(json.dumps([dataset_names(*names), sorted(modules)]))
"""
HELPERS = {
    "customer": (
        "from feast import Entity\n"
        'customer = Entity(name="customer", join_keys=["customer_id"])\n'
    ),
    "money": (
        "import pyarrow as pa\n"
        "from gyre import Dataset\n"
        'NAME = pa.field("money", pa.float64())\n'
        'def money(name: str) -> Dataset:\n    return Dataset(name="money")\n'
    ),
    "package/__init__": "from .times import DAY\n",
    "package/times": "from datetime import timedelta\nDAY = timedelta(days=1)\n",
    "unused": 'raise RuntimeError("helps nobody")\n',
}
"""Modules without a Dataset, by path: they are imported, and none is a dataset."""
COPY = "ORDERS, name={!r}, views={{}}, labels={{}}"
DATASETS = {
    "by_replace": (
        "from dataclasses import replace\n"
        "from .customer import customer\n"
        "from .orders import ORDERS\n"
        f"DATASET = replace({COPY.format('by_replace')})\n"
    ),
    "by_module": (
        "import dataclasses\n"
        "import feature_repo.datasets.orders as shop\n"
        "ORDERS = shop.ORDERS\n"
        f"DATASET = dataclasses.replace({COPY.format('by_module')})\n"
    ),
    "by_class": (
        "from feature_repo import definition\n"
        "from feature_repo.datasets import package\n"
        "from feature_repo.datasets.orders import ORDERS\n"
        'OTHERS = {**vars(ORDERS), "views": {}}\n'
        'del OTHERS["name"]\n'
        'DATASET = definition.Dataset(**OTHERS, name="by_" + "class")\n'
    ),
    "by_alias": (
        "from feature_repo.definition import Dataset as D\n"
        "from .orders import ORDERS\n"
        "if True:\n"
        '    DATASET = D(**(vars(ORDERS) | {"name": "by_alias", "views": {}}))\n'
    ),
    "by_function": (
        "from dataclasses import replace\n"
        "from .orders import ORDERS\n"
        "def make(name):\n    return replace(ORDERS, name=name, views={})\n"
        'DATASET = make("by_function")\n'
    ),
}
"""Modules that make a Dataset of their name."""
BROKEN = {
    "a_typo": (
        (
            "from datetime import timedelta\n"
            "from gyre import Dataset\n\n"
            "WINDOW = Dataset(look_back=timedelta(dayz=3))\n"
        ),
        ".py:4: TypeError: ",  # the words differ by the Python
    ),
    "a_torn": (
        "x = (",
        ".py:1: SyntaxError: '(' was never closed (dataset 'a_torn' cannot be imported)",
    ),
    "an_old_path": (
        (
            "from gyre import Dataset\n"
            "from feature_repo.windows import Window\n"
            "WINDOW = Dataset(views=Window())\n"
        ),
        (
            ".py:2: ModuleNotFoundError: No module named 'feature_repo.windows': from gyre "
            "import DECIMAL, Window, Windows, feature_view (dataset 'an_old_path' cannot"
        ),
    ),
    "an_unfinished": (
        "from .orders import ORDERS\n\ndef half(:\n    pass\n",
        ".py:3: SyntaxError: invalid syntax",
    ),
    "by_another_name": (
        DATASETS["by_function"].replace(
            'make("by_function")',
            'make("by_another_" + "word")\nmake("by_another_name")',
        ),
        ".py defines no Dataset(name='by_another_name')",
    ),
}


@pytest.fixture
def project(tmp_path):
    """The project as git has it, with more modules of datasets."""
    for folder in ("feature_repo", "core", "stack"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=ignored)
    folder = tmp_path / "feature_repo" / "datasets"
    (folder / "package").mkdir()
    modules = HELPERS | DATASETS
    modules |= {name: module for name, (module, _) in BROKEN.items()}
    for name, module in modules.items():
        (folder / f"{name}.py").write_text(module)
    return tmp_path


def output(project, *arguments):
    text = subprocess.check_output(
        [commands_folder() / "python", *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project)},
    )
    return json.loads(text)


def test_a_broken_dataset_module_is_named_with_its_line_and_the_others_load(project):
    names, problems, owner, helper = output(project, "-c", READ)
    assert (names, owner) == (sorted([*DATASETS, "orders"]), "orders")
    assert helper.startswith("feature_repo/datasets/money.py defines no Dataset")
    assert len(problems) == len(BROKEN)
    for name, (_, problem) in BROKEN.items():
        beginning = f"feature_repo/datasets/{name}{problem}"
        assert any(line.startswith(beginning) for line in problems), problems


@pytest.mark.parametrize(
    ("name", "datasets", "helpers"),
    [
        ("by_replace", {"orders"}, {"customer"}),
        ("by_module", {"orders"}, set()),
        ("by_class", {"orders"}, {"__init__", "times"}),
        ("a_torn", set(), set()),
        ("an_unfinished", {"orders"}, set()),
        ("money", set(), set()),
    ],
)
def test_datasets_and_helpers_that_a_module_imports_are_told_apart_without_importing(
    project, name, datasets, helpers
):
    names, modules = output(project, "-c", NAMES, name)
    assert names == sorted({name} | datasets)
    assert modules == sorted({name} | datasets | helpers)


def test_feast_imports_the_modules_of_datasets_alone():
    folder = PROJECT / "feature_repo"
    datasets = {path.resolve() for path in (folder / "datasets").rglob("*.py")}
    assert datasets.issuperset(get_repo_files(folder))


def test_feast_apply_names_the_line_that_cannot_be_imported(project):
    done = subprocess.run(
        [commands_folder() / "feast", "apply"],
        cwd=project / "feature_repo",
        env=os.environ | {"PYTHONPATH": str(project)},
        capture_output=True,
        check=False,
        text=True,
    )
    line = (
        "gyre: feature_repo/datasets/a_torn.py:1: SyntaxError: '(' was never closed: "
    )
    assert (done.returncode, done.stderr.startswith(line)) == (1, True), done.stderr
    assert not (project / ".gyre").exists()


def test_an_entity_of_another_type_is_named():
    text = ORDERS.schema.set(
        ORDERS.schema.get_field_index("customer_id"),
        pa.field("customer_id", pa.string()),
    )
    calls = replace(ORDERS, name="calls", schema=text)
    other = replace(ORDERS, name="other", entity="order_id")
    assert entity_problems([ORDERS, other]) == {}
    problems = entity_problems([calls, ORDERS, other])
    assert problems.keys() == {"orders"}
    assert "customer_id is int64 here and string in calls" in problems["orders"]


def test_gyre_new_refuses_an_entity_of_another_type():
    _require_entity_type("customer_id", is_number=True)
    message = r"--entity: join key customer_id is string here and int64 in orders"
    with pytest.raises(SettingsError, match=message):
        _require_entity_type("customer_id", is_number=False)


CALLS = """
from dataclasses import replace
import pyarrow as pa
from .orders import ORDERS
POSITION = ORDERS.schema.get_field_index("customer_id")
TEXTS = ORDERS.schema.set(POSITION, pa.field("customer_id", pa.string()))
CALLS = replace(ORDERS, name="calls", schema=TEXTS, views={}, labels={})
"""


SHOPS = """
import pyarrow as pa
from dataclasses import replace
from feast import Entity, ValueType
from feature_repo.datasets.orders import ORDERS, customer
from gyre import feature_view

def visits(orders):
    orders = orders.mutate(shop=orders.number_of_cds{cast}, event_timestamp=orders.order_ts)
    return orders.select("customer_id", "shop", "event_timestamp", paid=orders.dollar_value)

shop = Entity(name="{name}_shop", join_keys=["shop"], value_type=ValueType.{kind})
SHOPS = replace(ORDERS, name="{name}", views={{"{name}_view": visits}}, labels={{}})
view = feature_view(SHOPS, "{name}_view", [customer, shop])
"""
READ_PROBLEMS = """
import json
from feature_repo.datasets import load_datasets
print(json.dumps(load_datasets()[1]))
"""


@pytest.mark.parametrize(
    ("cast", "kind"), [(".cast('string')", "STRING"), ("", "INT64")]
)
def test_a_further_join_key_of_another_type_is_named(project, cast, kind):
    folder = project / "feature_repo" / "datasets"
    numbers = SHOPS.format(name="numbers", cast="", kind="INT64")
    (folder / "numbers.py").write_text(numbers)
    texts = SHOPS.format(name="texts", cast=cast, kind=kind)
    (folder / "texts.py").write_text(texts)
    problems = output(project, "-c", READ_PROBLEMS)
    expected = (
        "texts: join key shop is string here and int64 in the view numbers_view of numbers: give "
        "the column another name in one of them, or make the types the same"
    )
    named = [line for line in problems if line.startswith("texts")]
    assert named == ([expected] if cast else [])


@pytest.mark.journey
def test_check_and_apply_refuse_an_entity_of_another_type(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    copy = Copy(folder, new_settings(tmp_path / "home"))
    copy.settings.home.mkdir(parents=True, exist_ok=True)
    write_feast_config(copy.settings)
    (folder / "feature_repo" / "datasets" / "calls.py").write_text(CALLS)
    message = "customer_id is int64 here and string in calls"
    for command in (
        "gyre check customer_churn_model",
        "cd feature_repo && feast apply",
    ):
        assert message in " ".join(copy.run(command, code=1).split())
