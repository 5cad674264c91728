"""`gyre check`: each planted typo is one line with file, key, what was expected and found."""

from __future__ import annotations

import json
import os
import re
import time
from shutil import rmtree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.clone import Copy, few_orders
from tests.conftest import BIN, at_most, new_settings

TOML, MODULE = "models/{}.toml", "feature_repo/datasets/{}.py"
SUITE = "feature_repo/expectations/{}.json"
OWN = "tests.training.factories"
FOREST = (
    'type = "random_forest"\n'
    "parameters = { n_estimators = 100, max_depth = 8, min_samples_leaf = 20 }"
)
REFUSED = {
    'type = "shop.models:forest"':
        "{}.toml: estimators.0: random_forest: shop.models:forest: .* of sklearn, .* no shop/",
    f'type = "{OWN}:forest"': "{}.toml: estimators.1: .*has no attribute 'forest'",
    f'type = "{OWN}:fails"': "{}.toml: estimators.2: .*KeyError: 'a table of mine'",
    f'type = "{OWN}:Unfitted"': "{}.toml: estimators.3: .*found a Unfitted without fit",
    'type = "sklearn.svm:LinearSVC"': "{}.toml: estimators.4: .* without predict_proba",
    'type = "lightgbm"\nparameters = { leaves = 4 }':
        r"{}.toml: estimators.5: .* out of .*num_leaves.*\['leaves'\]; .* 'lightgbm:LGBMClassif",
    'type = "random_forest"\nparameters = { max_dept = 8 }':
        "{}.toml: estimators.6: more_6: .*found .'max_dept'",
}  # fmt: skip
FIT_ONLY = {
    f'type = "{OWN}:Texts"': r"{}.toml: estimators.0: .* 0 and 1 .*\['no', 'yes'\]",
    f'type = "{OWN}:Unknown"': "{}.toml: estimators.1: ONNX export of Unknown: .*own-mod",
    f'type = "{OWN}:xgboost_behind_a_scaler"':
        r"{}.toml: estimators.2: .*served scores otherwise: real: largest .*own-model\.md",
    'type = "lightgbm"\nparameters = { learning_rate = -1.0 }':
        "{}.toml: estimators.3: .*estimator more_3: .*learning_rate",
}  # fmt: skip
"""Refused once a sample of the rows is fitted."""


def instead_of_it(first, *more):
    """The forest's place in a spec, taken by several estimators."""
    named = (
        f'\n\n[[estimators]]\nname = "more_{n}"\n{one}' for n, one in enumerate(more, 1)
    )
    return "".join([first, *named])


OF_SPEC = [
    ('label = "silent_30d"', 'labl = "silent_30d"', "{}.toml: label: Field required"),
    ('label = "silent_30d"', 'labl = "silent_30d"', "{}.toml: labl: unknown key; did you mean label"),
    ('type = "random_forest"', 'type = "xgbost"', "{}.toml: estimators.0.type: .*'xgbost'"),
    (FOREST, instead_of_it(*REFUSED), *REFUSED.values()),
    ('feature = "days_', 'feature = "dys_', r"{}.toml: population.feature: 'dys_since.*not in"),
    ("loss = 10", "loss = -1", r"{}.toml: costs.loss: Input should be greater than 0 \(found -1\)"),
    ('metric = "log_loss"', 'metric = "logloss"', "{}.toml: gates.0.better_than_baseline.metric: "),
    ("seed = 7", "seed = ", r"{}.toml: not TOML: .*line "),
    ("events_30d =", "events_3d =", "{}.toml: .*events_3d: expected one of plain_v1: events_7d, "),
    ('amount_30d = "double"', 'amount_30d = "int64"', "{}.toml: .*: expected double, found int64"),
    ('"silent_30d"', '"silent_90d"', "{}.toml: label: 'silent_90d' is not of plain: silent_30d"),
    ('dataset = "', 'dataset = "x', "{}.toml: dataset: no dataset 'xplain'"),
    ('_v1"', '_v2"', r"{}.toml: feature_service: expected one of plain.py, .*found 'plain_v2'"),
    ("train = 3", 'train = 3\nrows = "label"', "feature_repo/.*/plain.py: label silent_30d: .* 1 "),
    ('"entity_id"', '"entity"', "{}.toml: entity_key: expected .'entity_id': 'int64'., found "),
]  # fmt: skip
OF_MODULE = [
    ('key=("event_id"', 'key=("event"', "{}: key event: expected a column of .*found 'event'"),
    ('event_time="event_ts"', 'event_time="event"', "{}: event_time: .*found 'event'"),
    ('entity="entity_id",\n    look', 'entity="entity",\n    look', "{}: entity: expected a col"),
    ('entity="entity_id",\n    time', 'entity="entity",\n    time',
     r"{}:\d+: ibis.*IbisTypeError: Column 'entity' is not found in table"),
    ('views={"', 'views={"x', r"{}:\d+: ValueError: .*expected one of xmodule_\d+_features, found"),
    ('"max"', '"median"', r"{}:\d+: ValueError: .*expected one of count, .*found 'median'"),
    ('Window(None, "count"', 'Window("amont", "count"', r"{}:\d+: ValueError: .*'amont' is not"),
    ("days=7)", "days=-7)", r"{}:\d+: ValueError: .*expected a period above 0, found -7 days"),
    ('events.select("entity_id", at=events["event_ts"])', "evnts", r"{}:\d+: NameError: .*'evnts'"),
    ("label=(members", "lable=(members", "{}: label silent_30d: expected a column label .*lable"),
    ('(members.after == 0).cast("int64")', "members.entity_id.cast('string')",
     "{}: label silent_30d: label: expected double, found string"),
    ('[Field(name="as_of"', '[Field(name="amount_30d", dtype=Int64), Field(name="as_of"',
     r"{}: service \w+: .*request data amount_30d: a key, a feature or Gyre has that name"),
    ("\nPERIODS", "\nibis.tabl\nPERIODS", r"{}:\d+: AttributeError: module 'ibis' has no .*'tabl'"),
    ("\nPERIODS", "\ndef b(:\nPERIODS", r"{}:\d+: SyntaxError: "),
]  # fmt: skip
BROKEN = f"module_{len(OF_MODULE) - 1}"
OF_SUITE = [
    ('{"column": "amount", "type_"', '{"column": "amont", "type_"', "{}: .*expected a .*'amont'"),
    ("{\n", "{,\n", "expectations/suite_1.json: expected Great .*: Expecting prop"),
    ('of_type"', 'of_typ"', "expectations/suite_2.json: rule 3: .*of_typ not found"),
    ('"column": "event_id", "type_"', '"colum": "event_id", "type_"',
     "expectations/suite_3.json: rule 3: .*colum extra fields not permitted"),
]  # fmt: skip
OF_ROWS = [
    ("(members.after == 0)", "(members.after < 0)", "{}: rows: every label of the .* is the same"),
    ("counted.before > 0", "counted.before > 3", r"{}: rows: label .*: \d+ of \d+ members of"),
    ('"last_event_us")],', '"last_event_us")], derived={"events_30d": _.events_30d.nullif(1)},',
     "{}: .*events_30d is null in "),
    ('== 0).cast("int64")', '== 0).cast("int64") * 2',
     "{}: rows: label silent_30d: expected 0 or 1, f"),
    ('"amount": pa.float64()', '"amount": pa.int64()', "{}: rows: .*amount: expected int64, fo"),
    ('"event_ts": pa', '"web": pa.int64(), "event_ts": pa', "{}: rows: .*the columns of .*web"),
    ('[Field(name="as_of"', '[Field(name="cart", dtype=Int64), Field(name="as_of"',
     r"{}: rows: label silent_30d: expected request data cart \(int64\) in each of its rows"),
    ('return {"days_since', 'return {"day_since', r"{}: service \w+: .*Explicitly specified fea"),
]  # fmt: skip
OF_FITTED = [
    (FOREST, instead_of_it(*FIT_ONLY), *FIT_ONLY.values()),
    ('missing_features = "defaults"', 'missing_features = "defaults"\nformat = "native"',
     r"{}.toml: estimators.0: .*expected trusted_types = \['sklearn.tree._tree.Tree'\], found"),
]  # fmt: skip
KINDS = {"spec": (TOML, OF_SPEC), "module": (MODULE, OF_MODULE), "suite": (SUITE, OF_SUITE),
         "rows": (MODULE, OF_ROWS), "fitted": (TOML, OF_FITTED)}  # fmt: skip
SPEC_OF = {"spec": "plain", "fitted": "good"}
"""Whose dataset they have; the other kinds have one each."""
PLANTED = [
    (kind, f"{kind}_{number}", file, *typo)
    for kind, (file, typos) in KINDS.items()
    for number, typo in enumerate(typos)
]
NEW = "from cli.use_case import new\nfor name in {}: new(name)"


def write_events(path):
    """Events of 300 entities in 400 days, half of which fall silent often."""
    chance, days = np.random.default_rng(7), 400
    entity, seconds = [], []
    for number in range(300):
        gaps = chance.exponential(8 if number % 2 else 45, 80) * 86_400
        times = gaps.cumsum()
        times = times[times < days * 86_400]
        entity += [number] * len(times)
        seconds += [*times.astype(int)]
    start = np.datetime64("now", "s") - np.timedelta64(days, "D")
    at = pa.array(
        start + np.array(seconds, "timedelta64[s]"), pa.timestamp("us", "UTC")
    )
    rows = {"event_id": range(len(entity)), "entity_id": entity, "event_ts": at}
    rows["amount"] = chance.integers(1, 100, len(entity)) / 4
    pq.write_table(
        pa.table({name: pa.array(values) for name, values in rows.items()}), path
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    copy = Copy(folder, new_settings(folder / ".gyre"))
    copy.run("cp -R tests/training/spend/. .")
    few_orders(folder)
    write_events(folder / "v.parquet")
    names = [name for kind, name, *_ in PLANTED if kind not in SPEC_OF]
    copy.run('python -c "$NEW"', NEW=NEW.format([*names, "good", "plain"]))
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
    """What `gyre check` says of all models at once."""
    names = [name for kind, name, *_ in PLANTED if kind == "rows"] + ["good"]
    sources = {
        f"GYRE_SOURCES__{name.upper()}": str(project.folder / "v.parquet")
        for name in names
    }
    return project.run("gyre check 2> err.log", 1, **sources).splitlines()


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [(name, file, line) for _, name, file, _, _, *lines in PLANTED for line in lines],
)
def test_each_typo_is_one_line_with_its_file(lines, name, file, message):
    where = name if file == TOML else file.format(name)
    expected = message.replace("{}", where, 1)
    assert [line for line in lines if re.match(expected, line)]


def test_what_has_no_typo_has_no_finding(lines, project):
    sources = {"customer_churn_model": "shipped file", "next_quarter_spend": "shipped file",
               "good": project.folder / "v.parquet"}  # fmt: skip
    for name, source in sources.items():
        assert f"{name}: ok; rows: a sample of {source}" in lines
    counts = [
        int(found[1])
        for line in lines
        if (found := re.search(r": findings: (\d+);", line))
    ]
    assert sum(counts) == len(lines) - len(counts) - len(sources) - 1  # plain
    assert len(counts) == len(PLANTED)


def test_it_says_what_a_training_will_see(lines, project):
    told = (project.folder / "err.log").read_text()
    sees = r"^good: .* about ([\d,]+) rows .* about ([\d,]+) rows"
    (counts,) = re.findall(sees, told, re.MULTILINE)
    assert "rows (3 by the month, " in told
    assert all(
        100 < int(count.replace(",", "")) < 900 for count in counts
    )  # of 300 entities


def test_without_a_source_it_says_how_to_set_one(lines, project):
    line = "add the line GYRE_SOURCES__PLAIN=… (a file, or address#table)"
    file = project.folder / ".gyre" / "gyre.env"
    assert f"plain: ok; rows: not checked, plain: no source; {line} to {file}" in lines


def test_a_module_that_cannot_be_imported_is_its_file_and_line_in_a_shell_too(
    project, lines
):
    said = project.run(f"gyre ingest {BROKEN}", 1)
    assert re.search(
        rf"^gyre: {MODULE.format(BROKEN)}:\d+: SyntaxError: ", said, re.MULTILINE
    )
    assert "Traceback" not in said


@pytest.mark.timed
def test_findings_of_a_spec_alone_come_at_once_and_the_schema_can_be_had(
    project, lines
):
    began = time.monotonic()
    own = {
        "PATH": f"{BIN}:{os.environ['PATH']}"
    }  # a process that imports what it needs
    assert "spec_0.toml: label: Field required" in project.run(
        "gyre check spec_0", 1, **own
    )
    assert time.monotonic() - began < at_most(3)
    schema = json.loads(project.run("gyre check --schema"))
    assert "regression" in json.dumps(schema["properties"]["task"])
