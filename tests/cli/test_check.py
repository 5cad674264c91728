"""`gyre check`: each planted typo is one line with file, key, and what was expected and found."""

import json
import os
import re
import time
from shutil import rmtree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import BIN, at_most, new_settings
from tests.support.tools.clone import Copy, events, fewer_trees

pytestmark = pytest.mark.journey

TOML = "models/{}.toml"
MODULE = "feature_repo/datasets/{}.py"
SUITE = "feature_repo/expectations/{}.json"
FACTORIES = "tests.support.training.factories"
FOREST = (
    'name = "random_forest"\ntype = "random_forest"\n'
    "parameters = { n_estimators = 10, max_depth = 8, min_samples_leaf = 20 }"
)
REFUSED = {
    'type = "shop.models:forest"':
        "{}.toml: estimators.0: more_0: shop.models:forest: .* of sklearn, .* no shop/",
    f'type = "{FACTORIES}:fails"': "{}.toml: estimators.1: .*KeyError: 'a table of mine'",
    'type = "lightgbm"\nparameters = { leaves = 4 }':
        r"{}.toml: estimators.2: .* out of .*num_leaves.*\['leaves'\]; .* 'lightgbm:LGBMClassif",
}  # fmt: skip
FIT_ONLY = {
    f'type = "{FACTORIES}:Texts"': r"{}.toml: estimators.0: .* 0 and 1 .*\['no', 'yes'\]",
    f'type = "{FACTORIES}:isotonic"':
        r"{}.toml: estimators.1: as ONNX it scores otherwise \(real: largest .*; in the format of its "
        r"library: .*trusted_types = \['sklearn.calibration._CalibratedClassifier'",
}  # fmt: skip
"""Refused once a sample of the rows is fitted."""


def instead(estimators):
    """The place of the forest in a spec, taken by several estimators."""
    tables = [
        f'name = "more_{number}"\n{lines}' for number, lines in enumerate(estimators)
    ]
    return "\n\n[[estimators]]\n".join(tables)


OF_SPEC = [
    ('label = "silent_30d"', 'labl = "silent_30d"', "{}.toml: label: Field required",
     "{}.toml: labl: unknown key; did you mean label"),
    (FOREST, instead(REFUSED), *REFUSED.values()),
    ("seed = 7", "seed = ", r"{}.toml: not TOML: .*line "),
    ("events_30d =", "events_3d =", "{}.toml: .*events_3d: expected one of plain_v1: events_7d, "),
    ('amount_30d = "double"', 'amount_30d = "int64"', "{}.toml: .*: expected double, found int64"),
    ('"silent_30d"', '"silent_90d"', "{}.toml: .*expected one of plain: silent_30d; found silent_90d"),
    ('dataset = "', 'dataset = "x', "{}.toml: dataset: no dataset 'xplain'"),
    ('_v1"', '_v2"', r"{}.toml: feature_service: expected one of plain.py, .*found 'plain_v2'"),
    ('"entity_id"', '"entity"', "{}.toml: entity_key: expected . .entity_id. = .int64. ., found "),
]  # fmt: skip
OF_MODULE = [
    ('key=("event_id"', 'key=("event"', "{}: key event: expected a column of .*found 'event'"),
    ('entity="entity_id",\n    time', 'entity="entity",\n    time',
     r"{}:\d+: ibis.*IbisTypeError: Column 'entity' is not found in table"),
    ('"max"', '"median"', r"{}:\d+: ValueError: .*expected one of count, .*found 'median'"),
    ("label=(members", "lable=(members", "{}: label silent_30d: expected a column label .*lable"),
    ('(members.after == 0).cast("int64")', "members.entity_id.cast('string')",
     "{}: label silent_30d: label: expected double, found string"),
    ("\nPERIODS", "\ndef b(:\nPERIODS", r"{}:\d+: SyntaxError: "),
]  # fmt: skip
OF_SUITE = [
    ('{"column": "amount", "type_"', '{"column": "amont", "type_"', "{}: .*expected a .*'amont'"),
    ("{\n", "{,\n", "expectations/suite_1.json: expected Great .*: Expecting prop"),
    ('of_type"', 'of_typ"', "expectations/suite_2.json: rule 3: .*of_typ not found"),
]  # fmt: skip
OF_ROWS = [
    ("(members.after == 0)", "(members.after < 0)", "{}: rows: every label of the .* is the same"),
    ('"last_event_us")],', '"last_event_us")], derived={"events_30d": _.events_30d.nullif(1)},',
     "{}: .*events_30d is null in "),
    ('"amount": pa.float64()', '"amount": pa.int64()', "{}: rows: .*amount: expected int64, fo"),
    ('[Field(name="as_of"', '[Field(name="cart", dtype=Int64), Field(name="as_of"',
     r"{}: rows: label silent_30d: expected request data cart \(int64\) in each of its rows"),
]  # fmt: skip
OF_FITTED = [
    (FOREST, instead(FIT_ONLY), *FIT_ONLY.values()),
]  # fmt: skip
KINDS = {"spec": (TOML, OF_SPEC), "module": (MODULE, OF_MODULE), "suite": (SUITE, OF_SUITE),
         "rows": (MODULE, OF_ROWS), "fitted": (TOML, OF_FITTED)}  # fmt: skip
SPEC_OF = {"spec": "plain", "fitted": "good"}
"""Whose dataset they have; the other kinds have one for each typo."""
PLANTED = [
    (kind, f"{kind}_{number}", file, *typo)
    for kind, (file, typos) in KINDS.items()
    for number, typo in enumerate(typos)
]
NEW = "from cli.use_case import new\nfor name in {}: new(name)"
COLUMNS = ("event_id", "entity_id", "event_ts", "amount")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    copy = Copy(folder, new_settings(folder / ".gyre"))
    (folder / "models" / "customer_churn_model.toml").unlink()
    rows = pa.Table.from_arrays([*map(pa.array, zip(*events(), strict=True))], COLUMNS)
    pq.write_table(rows, folder / "v.parquet")
    names = [name for kind, name, *_ in PLANTED if kind not in SPEC_OF]
    names += ["good", "plain"]
    copy.run('python -c "$NEW"', NEW=NEW.format(names))
    for name in names:
        fewer_trees(folder / TOML.format(name))
    for kind, name, file, before, after, *_ in PLANTED:
        path = folder / file.format(name)
        if kind in SPEC_OF:
            text = (folder / TOML.format(SPEC_OF[kind])).read_text()
            path.write_text(text.replace(f'"{SPEC_OF[kind]}"', f'"{name}"', 1))
        assert before in path.read_text(), (name, before)
        path.write_text(path.read_text().replace(before, after, 1))
    # Python keeps the bytecode of a file that is edited to the same size within one second.
    rmtree(folder / "feature_repo" / "datasets" / "__pycache__")
    return copy


@pytest.fixture(scope="module")
def lines(project):
    """What `gyre check` prints about all models at once."""
    names = [name for kind, name, *_ in PLANTED if kind == "rows"] + ["good"]
    source = project.folder / "v.parquet"
    sources = {f"GYRE_SOURCES__{name.upper()}": f"{source}" for name in names}
    return project.run("gyre check 2> /dev/null", 1, **sources).splitlines()


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [(name, file, line) for _, name, file, _, _, *lines in PLANTED for line in lines],
)
def test_each_typo_is_reported_in_one_line_with_its_file(lines, name, file, message):
    place = name if file == TOML else file.format(name)
    expected = message.replace("{}", place, 1)
    assert [line for line in lines if re.match(expected, line)]


def test_a_model_without_a_typo_has_no_finding(lines, project):
    folder = project.folder
    assert f"good: ok; rows: a sample of {folder / 'v.parquet'}" in lines
    file = folder / ".gyre" / "gyre.env"
    remedy = f"add the line GYRE_SOURCES__PLAIN=… (a file, or address#table) to {file}"
    assert f"plain: ok; rows: not checked, plain: no source; {remedy}" in lines
    with_findings = [line for line in lines if re.search(r": findings: \d+;", line)]
    assert len(with_findings) == len(PLANTED)


@pytest.mark.timed
def test_check_reports_a_spec_within_3_seconds_and_prints_the_schema(project, lines):
    # A process that imports what it needs.
    path = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    began = time.monotonic()
    output = project.run("gyre check spec_0", 1, **path)
    assert time.monotonic() - began < at_most(3)
    assert "spec_0.toml: label: Field required" in output
    schema = json.loads(project.run("gyre check --schema"))
    assert "regression" in json.dumps(schema["properties"]["task"])
