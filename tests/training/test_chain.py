"""The stages in order, with real MLflow: from orders to a version in production."""

from __future__ import annotations

import json
import re
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from core.errors import (
    NoChampionError,
    RegistryError,
    SettingsError,
    TrainingError,
)
from core.monitoring_spec import Promotion, Rollout
from core.spec import ModelSpec
from core.training_spec import Limit
from feature_repo.features import raw_table
from mlflow_server.ledger import Ledger
from mlflow_server.pages import CARD
from mlflow_server.promotion import release
from mlflow_server.pyfunc import read_file
from mlflow_server.registry import Registry
from mlflow_server.served_model import CONTRACT_FILE, ServedModel
from mlflow_server.tracking import Tracking
from monitoring.outcomes import backfilled_outcomes
from tests.conftest import AS_OF
from tests.mlflow_server.conftest import stages
from tests.training.conftest import (
    OLD,
    ORDERS,
    SMALL,
    SPEC,
    installation,
    run_stages,
    train,
)
from training import chain, validate
from training.artifacts import CANDIDATE, GATES, PLOTS, fetched, read
from training.dataset import load_frame, unlearnable
from training.frame import at, content_hash, features, with_features
from training.gate import decide, load_evaluation, model_card
from training.metrics import Scored, all_metrics
from training.reference import load_reference
from training.register import ask, promote, settled, wait_in_shell
from training.scoring import score, version_scores
from training.summary import summary
from training.train import THRESHOLDS, fold_scores

ALIKE = "lifetime_value has no two values in the 50 training rows"


def served(settings, version):
    registry = Registry(settings)
    with TemporaryDirectory() as folder:
        registry.download(registry.version(SPEC.name, version), Path(folder))
        return ServedModel.model_validate_json(
            (Path(folder) / CONTRACT_FILE).read_bytes()
        )


def stopped(settings, key):
    """The run of `key`, which failed and left version 2 in production."""
    run = next(
        run for run in Tracking(settings).runs(SPEC.experiment) if run.key == key
    )
    assert run.status == "FAILED"
    assert Registry(settings).production(SPEC.name) == "2"
    return run


def test_the_first_version_of_a_short_history_is_the_specs_first_estimator(
    tracked, first
):
    run = Tracking(tracked).run(first.run_id)
    assert first.version == "1"
    assert run.params["estimator"] == SPEC.estimators[0].name
    assert run.params["chosen_by"] == "first of the spec: no folds"
    assert "champion/log_loss" not in run.metrics


def test_a_fresh_model_is_chosen_by_folds_and_replaces_the_old_one_by_its_gate(
    tracked, second
):
    run, ledger = Tracking(tracked).run(second.run_id), Ledger(tracked)
    names = {estimator.name for estimator in SPEC.estimators}
    assert {f"fold/log_loss_{name}" for name in names} <= set(run.metrics)
    best = min(names, key=lambda name: run.metrics[f"fold/log_loss_{name}"])
    assert run.params["estimator"] == best
    ours, champion = run.metrics["test/log_loss"], run.metrics["champion/log_loss"]
    assert ours < min(champion, run.metrics["baseline/log_loss"])
    assert run.metrics["minus_champion/log_loss_upper"] <= 0.005 * champion
    assert Registry(tracked).production(SPEC.name) == "2"
    rows = ledger.rows(SPEC.name)
    assert [(row.from_version, row.to_version) for row in rows] == [
        (None, "1"),
        ("1", "2"),
    ]
    assert all(row.applied_at for row in rows)
    ledger.close()


def test_what_is_in_the_mlflow_ui(tracked, second):
    tracking = Tracking(tracked)
    run = tracking.run(second.run_id)
    for metric in (
        "accuracy",
        "precision",
        "recall",
        "f1",
        "auc",
        "log_loss",
        "average_precision",
    ):
        assert np.isfinite(run.metrics[f"test/{metric}"])
        assert f"baseline/{metric}" in run.metrics
        assert f"champion/{metric}" in run.metrics
    client = mlflow.MlflowClient(tracked.mlflow_address)
    plots = {item.path for item in client.list_artifacts(second.run_id, "plots")}
    drawn = (
        "confusion_matrix",
        "roc",
        "precision_recall",
        "calibration",
        "feature_importance",
    )
    assert plots == {f"plots/{name}.png" for name in drawn}
    dataset = client.get_run(second.run_id).inputs.dataset_inputs[0].dataset
    frame, plan = load_frame(tracking, second.run_id)
    digest = content_hash(at(frame, plan.train))
    assert dataset.digest == digest[:36]
    version = Registry(tracked).version(SPEC.name, second.version)
    assert version.tags["frame_sha256"] == digest
    lineage = {
        "git_commit", "lock_sha256", "spec_sha256", "seed", "as_of", "table.raw.orders",
        "sha256.model.onnx", "sha256.serving.json", "definition.customer_features",
        "definition.customer_recency", "definition.service.customer_churn_v1",
    }  # fmt: skip
    assert lineage <= set(version.tags)


def test_a_training_beside_the_champion_is_tables_for_a_pull_request(tracked, second):
    page = summary(tracked, SPEC, second.version).markdown()
    evaluation = load_evaluation(Tracking(tracked), second.run_id)
    ours, gap = evaluation.intervals["log_loss"], evaluation.differences["log_loss"]
    lines = page.splitlines()
    assert lines[0] == f"### {SPEC.name}: all {len(SPEC.gates) + 1} gates passed"
    assert lines[2].startswith(
        f"Version 2, trained as of {AS_OF:%Y-%m-%dT%H:%M} UTC, tested on"
    )
    assert lines[4] == (
        "| metric | better | challenger | version 1 | difference | best constant |"
    )
    row = next(line for line in lines if line.startswith("| log loss |"))
    assert row == (
        f"| log loss | less | {ours.value:.4f} [{ours.low:.4f}, {ours.high:.4f}] | "
        f"{evaluation.champion['log_loss']:.4f} | {gap.value:+.4f} [{gap.low:+.4f}, "
        f"{gap.high:+.4f}] | {evaluation.baseline['log_loss']:.4f} |"
    )
    tables = [line for line in lines if line.startswith("|")]
    assert len(tables) == 2 + len(evaluation.intervals) + 2 + len(SPEC.gates) + 1
    assert {line.count("|") for line in tables} == {
        7,
        4,
    }  # GitHub draws what has equal columns


def test_the_tables_of_a_first_training_have_no_champion(tracked, first):
    alone = summary(tracked, SPEC, first.version).markdown()
    assert "Nothing was in production to compare with." in alone
    assert "| metric | better | challenger | best constant |" in alone
    with pytest.raises(
        RegistryError, match="MLflow has no run of version 99: gyre train"
    ):
        summary(tracked, SPEC, "99")


def test_any_mlflow_client_can_load_what_is_in_production(tracked, second):
    mlflow.set_tracking_uri(tracked.mlflow_address)
    model = mlflow.pyfunc.load_model(f"models:/{SPEC.name}@production")
    frame, plan = load_frame(Tracking(tracked), second.run_id)
    rows = features(SPEC, at(frame, plan.test)).head(5)
    scores = np.asarray(model.predict(rows)["score"])
    assert scores.shape == (5,)
    assert np.all((scores > 0) & (scores < 1))


def test_nothing_new_to_learn_ends_before_a_run_begins(tracked, second):
    before = len(Tracking(tracked).runs(SPEC.experiment))
    report = train(tracked, SPEC, AS_OF + timedelta(hours=1), "again")
    assert (report.run_id, report.version) == (None, None)
    assert "nothing new to learn" in report.outcome
    assert len(Tracking(tracked).runs(SPEC.experiment)) == before


def test_a_refused_gate_says_why_and_the_champion_stays(tracked, second):
    weakest = tuple(e for e in SPEC.estimators if e.type == "logistic_regression")
    spec = SPEC.model_copy(update={"estimators": weakest})
    report = train(tracked, spec, AS_OF, "refused")
    assert report.version is None
    assert (
        "refused: log_loss not_worse_than_champion: log_loss minus that of ver"
        in report.outcome
    )
    assert Registry(tracked).production(SPEC.name) == "2"
    run = Tracking(tracked).run(report.run_id)
    assert run.tags["gate"].startswith("refused")
    assert run.status == "FINISHED"
    card = read(Tracking(tracked), report.run_id, CARD).decode()
    assert "Refused by 1 of 3 gates" in card
    found = summary(tracked, SPEC)
    assert found.version is None
    page = found.markdown()
    assert page.startswith(f"### {SPEC.name}: refused by 1 of 3 gates")
    assert "| **refused** | log loss: not worse than champion |" in page


def test_the_threshold_is_chosen_on_the_newest_fold_and_served(tracked, first, second):
    tracking = Tracking(tracked)
    old, run = tracking.run(first.run_id), tracking.run(second.run_id)
    assert (old.params["threshold"], old.params["threshold_by"]) == (
        "0.5",
        "the spec: no folds",
    )
    threshold = float(run.params["threshold"])
    assert (served(tracked, "1").threshold, served(tracked, "2").threshold) == (
        0.5,
        threshold,
    )
    frame, plan = load_frame(tracking, second.run_id)
    chosen = next(e for e in SPEC.estimators if e.name == run.params["estimator"])
    y, scores = fold_scores(SPEC, chosen, frame, plan.folds[-1])
    assert len(y) == at(frame, plan.folds[-1].validation).num_rows
    assert plan.folds[-1].validation[-1] < plan.test[0]
    cost = {
        t: all_metrics(y, Scored(scores, t), SPEC.costs)["cost"] for t in THRESHOLDS
    }
    assert cost[threshold] == pytest.approx(min(cost.values()))
    evaluation = load_evaluation(tracking, second.run_id)
    model = version_scores(tracked, SPEC, "2", at(frame, plan.test))
    tested = all_metrics(at(frame, plan.test)["label"].to_numpy(), model, SPEC.costs)
    assert tested == pytest.approx(evaluation.challenger)


def test_what_is_measured_beside_the_metrics(tracked, second):
    found = load_evaluation(Tracking(tracked), second.run_id)
    for name, each in found.intervals.items():
        assert each.low < each.value == found.challenger[name] < each.high
    assert (
        set(found.differences)
        == set(found.intervals)
        > {"log_loss", "brier", "auc", "cost"}
    )
    assert [segment.value for segment in found.segments] == ["loyal", "repeat"]
    assert sum(segment.rows for segment in found.segments) == found.rows
    selected = [segment.selected for segment in found.segments]
    gap = found.figures["demographic_parity_difference"]
    assert gap == pytest.approx(max(selected) - min(selected))
    assert found.figures["latency_p99_ms"] > 0
    assert found.figures["onnx_difference"] < 1e-5
    file = read(Tracking(tracked), second.run_id, f"{CANDIDATE}/model.onnx")
    assert found.figures["model_mb"] == len(file) / 1e6
    assert found.figures["ece"] < 0.1
    assert found.challenger["cost"] < found.baseline["cost"]


def test_one_page_tells_what_the_model_is(tracked, second):
    card = read(Tracking(tracked), second.run_id, CARD).decode()
    run, found = (
        Tracking(tracked).run(second.run_id),
        load_evaluation(Tracking(tracked), second.run_id),
    )
    expected = (
        "All 3 gates passed", "better than baseline", "not worse than champion", "onnx proof",
        "version 1", "loyal", "equal opportunity difference", "prevents 20 % of those losses",
        f"<strong>{found.threshold:.2f}</strong>", f"[{found.intervals['auc'].low:.4f}, ",
        run.params["test_snapshot"], run.params["train_snapshots"], f"{found.rows:,} rows",
        run.tags["git_commit"], run.tags["definition.customer_features"], run.tags["frame_sha256"],
        "table version 0", f"gyre reproduce {SPEC.name} VERSION",
    )  # fmt: skip
    assert [text for text in expected if text not in card] == []
    assert card.count("data:image/png;base64,") == 3
    assert re.findall(r"(?:src|href)=\"(?!data:)|https?://|url\(", card) == []


def test_the_page_shows_which_features_move_the_score(tracked, second):
    card = read(Tracking(tracked), second.run_id, CARD).decode()
    means = load_evaluation(Tracking(tracked), second.run_id).contributions
    assert set(means) == {*SPEC.features}
    assert [*means.values()] == sorted(means.values(), reverse=True)
    name, largest = next(iter(means.items()))
    assert 0.01 < largest < 0.5
    assert f'<tr><td>{name}</td><td class="n">{largest:.4f}</td></tr>' in card
    assert 'alt="contributions of each feature" src="data:image/png;base64,' in card


def test_a_version_keeps_rows_to_explain_its_predictions_against(tracked, second):
    contract, tracking = served(tracked, second.version), Tracking(tracked)
    frame, plan = load_frame(tracking, second.run_id)
    rows = features(SPEC, at(frame, plan.train)).to_dict("records")
    assert len(contract.background) == 20
    assert [row for row in contract.background if row not in rows] == []
    old = contract.model_dump(mode="json")
    del old["background"]
    assert ServedModel.model_validate(old).background == ()


def test_what_people_wrote_is_text_on_the_page(tracked, second):
    tracking = Tracking(tracked)
    run = tracking.run(second.run_id)
    run = replace(run, tags=run.tags | {"reason": "<script>alert(1)</script>"})
    found = load_evaluation(tracking, second.run_id)
    found = replace(found, unavailable="<b>", champion={}, differences={})
    with fetched(tracking, second.run_id, PLOTS) as plots:
        card = model_card(SPEC, run, found, decide(SPEC.gates, found), plots)
    assert "&lt;script&gt;" in card
    assert "<script>" not in card
    assert "could not be compared with: &lt;b&gt;" in card
    assert "Refused by 1 of 3 gates" in card


def test_a_champion_that_cannot_be_loaded_stops_the_training_and_stays(
    tracked, second, tmp_path
):
    registry = Registry(tracked)
    registry.download(registry.version(SPEC.name, "2"), tmp_path)
    whole = (tmp_path / "serving.json").read_bytes()
    files = (tracked.home / "mlflow" / "artifacts").rglob("serving.json")
    contracts = [path for path in files if path.read_bytes() == whole]
    for contract in contracts:
        contract.write_bytes(whole[:-1])
    spec = SPEC.model_copy(update={"estimators": (SMALL,)})
    try:
        with pytest.raises(
            TrainingError, match=r"^customer_churn_model: refused: .*serving.json"
        ):
            train(tracked, spec, OLD, "no champion")
    finally:
        for contract in contracts:
            contract.write_bytes(whole)
    run = stopped(tracked, "no champion")
    assert (
        "version 2 cannot be compared with: RegistryError: version 2"
        in run.tags["gate"]
    )
    gates = json.loads(read(Tracking(tracked), run.run_id, GATES))["gates"]
    assert {gate["rule"]: gate["passed"] for gate in gates} == {
        "better_than_baseline": True, "not_worse_than_champion": False, "onnx_proof": True,
    }  # fmt: skip


@pytest.fixture(scope="module")
def audited(tracked, second):
    """A spec that loses a feature and keeps it as an audit column, and its run."""
    column = "customer_segment"
    fewer = {name: kind for name, kind in SPEC.features.items() if name != column}
    gap = Limit(metric="largest_gap", rule="at_most", value=0.0)
    spec = SPEC.model_copy(
        update={
            "estimators": (SMALL,),
            "features": fewer,
            "gates": (*SPEC.gates, gap),
            "audit": {column: "string"},
        }
    )
    return spec, train(tracked, spec, OLD, "audited")


def test_a_spec_that_loses_a_feature_is_compared_with_the_version_that_has_it(
    tracked, audited
):
    """The monitor goes on to read what the version was made of."""
    spec, report = audited
    assert (
        "log_loss not_worse_than_champion: log_loss minus that of version 2"
        in report.outcome
    )
    frame, plan = load_frame(Tracking(tracked), report.run_id)
    asked = with_features(tracked, SPEC, at(frame, plan.test).select(
        [*SPEC.entity_key, "event_timestamp", "label"]))  # fmt: skip
    theirs = version_scores(tracked, SPEC, "2", asked)
    metrics = all_metrics(asked["label"].to_numpy(), theirs, SPEC.costs)
    assert (
        Tracking(tracked).run(report.run_id).metrics["champion/log_loss"]
        == metrics["log_loss"]
    )
    version = Registry(tracked).version(SPEC.name, "2")
    reference = load_reference(tracked, version)
    assert {*SPEC.features, "score", "label"} <= {*reference.rows}
    before = reference.snapshot - timedelta(days=40)
    assert backfilled_outcomes(tracked, spec, "2", before, AS_OF) is not None


def test_fairness_over_an_audit_column_that_the_model_is_not_given(tracked, audited):
    spec, report = audited
    (column,) = spec.audit
    assert "; largest_gap at_most" in report.outcome
    tracking = Tracking(tracked)
    frame, plan = load_frame(tracking, report.run_id)
    test = at(frame, plan.test)
    with fetched(tracking, report.run_id, CANDIDATE) as folder:
        contract = ServedModel.model_validate_json(
            (folder / CONTRACT_FILE).read_bytes()
        )
        scores = score(read_file(folder, contract), spec.inputs, features(spec, test))
    assert contract.features == spec.features
    rows = test.to_pandas().assign(said=np.round(scores, 6) >= contract.threshold)
    rates = [rows, rows[rows["label"] == 1], rows[rows["label"] == 0]]
    means = [each.groupby(column)["said"].mean() for each in rates]
    parity, opportunity, alarms = (mean.max() - mean.min() for mean in means)
    found = load_evaluation(tracking, report.run_id)
    assert {each.value for each in found.segments} == {"new", "repeat", "loyal"}
    assert found.figures["demographic_parity_difference"] == pytest.approx(parity)
    assert found.figures["equal_opportunity_difference"] == pytest.approx(opportunity)
    assert found.figures["largest_gap"] == pytest.approx(
        max(parity, opportunity, alarms)
    )


def test_a_version_of_another_task_or_of_other_entities_is_no_champion(tracked, second):
    ridge = [{"name": "ridge", "type": "ridge"}]
    gates = [{"metric": "rmse", "rule": "not_worse_than_champion"}]
    more = {"task": "regression", "threshold": None, "costs": None, "gates": gates}
    more |= {"estimators": ridge, "promotion": {"approval": True}}
    report = train(
        tracked, ModelSpec.model_validate(SPEC.model_dump() | more), OLD, "numbers"
    )
    assert f"gyre promote {SPEC.name} {report.version} --replaces 2 " in report.outcome
    card = read(Tracking(tracked), report.run_id, CARD).decode()
    assert (
        f"No champion to compare with: version 2 of {SPEC.name} is of no regression"
        in card
    )
    other = SPEC.model_copy(update={"entity_key": {"order_id": "int64"}})
    with pytest.raises(NoChampionError, match="is of customer_id, not of order_id"):
        version_scores(tracked, other, "2", pa.table({}))


@pytest.fixture(scope="module")
def other(tracked, second, tmp_path_factory):
    """Another installation with the same MLflow: every order costs the same in it.

    Nobody orders again after the test snapshot.
    """
    rows = raw_table(tracked, ORDERS).read().select(ORDERS.schema.names)
    test = datetime.fromisoformat(
        Tracking(tracked).run(second.run_id).params["test_snapshot"]
    )
    before = pc.less_equal(rows["order_ts"], pa.scalar(test.replace(tzinfo=UTC)))
    early = rows.filter(before)
    settings = installation(tmp_path_factory.mktemp("other"), costing(early, 9.5))
    return settings.model_copy(update={"mlflow_port": tracked.mlflow_port})


def costing(orders, dollars):
    place = orders.schema.get_field_index("dollar_value")
    same = pa.array(np.full(orders.num_rows, dollars))
    return orders.set_column(place, "dollar_value", same)


def test_data_that_nothing_can_be_learnt_from_is_on_record_and_changes_nothing(
    tracked, other
):
    told = r"every label of the \d+ test rows is the same; avg_order_value has no two values"
    with pytest.raises(TrainingError, match=told):
        train(other, SPEC, AS_OF, "useless", force=True)
    run = stopped(tracked, "useless")
    assert re.search(f"^{SPEC.name}: .*{told}", run.tags["outcome"])


def label_with_a_bug(orders, snapshots):
    return orders.order_tss


def label_that_is_stopped(orders, snapshots):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("label", "error", "outcome"),
    [
        (
            label_with_a_bug,
            AttributeError,
            "AttributeError: 'Table' object has no attribute",
        ),
        (label_that_is_stopped, KeyboardInterrupt, "KeyboardInterrupt"),
    ],
)
def test_whatever_ends_a_training_is_the_outcome_of_its_run_which_has_failed(
    tracked, second, label, error, outcome
):
    shipped, key = ORDERS.labels[SPEC.label], f"dies {label.__name__}"
    ORDERS.labels[label.__name__] = replace(shipped, expression=label)
    try:
        with pytest.raises(error):
            train(
                tracked, SPEC.model_copy(update={"label": label.__name__}), AS_OF, key
            )
    finally:
        del ORDERS.labels[label.__name__]
    told = stopped(tracked, key).tags["outcome"]
    assert told.startswith(outcome)
    assert "\n" not in told


@pytest.mark.parametrize(
    ("train_labels", "test_labels", "column", "told"),
    [
        ([0, 1], [0, 1], [1.0, 2.0], []),
        ([0, 1], [1, 1], [1.0, 2.0], ["every label of the 50 test rows is the same"]),
        (
            [0, 0],
            [0, 1],
            [1.0, 2.0],
            ["every label of the 50 training rows is the same"],
        ),
        ([0, 1], [0, 1], [2.0, 2.0], [ALIKE]),
        (
            [0, 1],
            [0, 1],
            [None, None],
            [ALIKE],
        ),
        ([0, 1], [0, 1], [None, 2.0], [ALIKE]),
        ([0, 1], [0, 1], [1.0, -np.inf], ["lifetime_value is infinite in 50 rows"]),
    ],
)
def test_what_cannot_be_learnt_from_is_one_line(
    train_labels, test_labels, column, told
):
    spec = SPEC.model_copy(update={"features": {"lifetime_value": "double"}})
    values = pa.array(column * 25, pa.float64())
    train_rows, test_rows = (
        pa.table({"lifetime_value": values, "label": labels * 25})
        for labels in (train_labels, test_labels)
    )
    assert unlearnable(spec, train_rows, test_rows) == told


def test_a_whole_number_that_is_null_is_one_line():
    spec = SPEC.model_copy(update={"features": {"lifetime_orders": "int64"}})
    rows = pa.table({"lifetime_orders": [1, 2] * 25, "label": [0, 1] * 25})
    nulls = pa.table({"lifetime_orders": [1, None] * 25, "label": [0, 1] * 25})
    (line,) = unlearnable(spec, rows, nulls)
    assert line.startswith(
        "lifetime_orders is null in 25 rows, which an int64 cannot be: make it"
    )


@pytest.mark.parametrize(
    ("task", "labels", "problem"),
    [
        ("classification", [0, 2], "label churned_90d: expected 0 or 1, found 2"),
        (
            "classification",
            [0, 1, None],
            "label churned_90d is null in 17 rows: leave these out",
        ),
        (
            "regression",
            [0.5, float("nan")],
            "expected a number up to 3.4e+38, found nan",
        ),
        (
            "regression",
            [0.5, float("-inf")],
            "expected a number up to 3.4e+38, found -inf",
        ),
    ],
)
def test_a_label_that_is_no_value_of_the_task_is_one_line(task, labels, problem):
    features = {"lifetime_value": "double"}
    spec = SPEC.model_copy(update={"task": task, "features": features})
    many = [labels[n % len(labels)] for n in range(51)]
    rows = pa.table({"lifetime_value": [float(n) for n in range(51)], "label": many})
    (line,) = unlearnable(spec, rows, rows.slice(0, 0), 0)[-1:]
    assert problem in line


def test_too_few_rows_are_one_line():
    spec = SPEC.model_copy(update={"features": {"lifetime_value": "double"}})
    rows = pa.table({"lifetime_value": [1.0, 2.0] * 25, "label": [0, 1] * 25})
    said = "expected at least 50 test rows, found 49; more: test of [snapshots] in "
    assert unlearnable(spec, rows, rows.slice(1)) == [f"{said}{spec.name}.toml"]


@pytest.fixture(scope="module")
def asking(tracked, second):
    """A spec whose versions need approval, and its run."""
    asks = {"promotion": Promotion(approval=True), "gates": (SPEC.gates[0],)}
    spec = SPEC.model_copy(update={"estimators": (SMALL,), **asks})
    return spec, train(tracked, spec, OLD, "asks")


def test_every_stage_twice_is_the_same_as_once(tracked, asking):
    spec, report = asking
    registry, run_id = Registry(tracked), report.run_id
    versions = registry.versions(SPEC.name)
    again = chain.open_run(tracked, spec, OLD, key="asks", reason="r", who="t")
    assert again == run_id
    run_stages(tracked, spec, run_id, "dataset", "train", "evaluate", "gate")
    assert run_stages(tracked, spec, run_id, "register") == report.version
    assert registry.versions(SPEC.name) == versions
    # As if it had been about a moment before the newest promotion, which was made by today's clock.
    tracking = Tracking(tracked)
    tracking.log(run_id, tags={"as_of": "2026-01-01T00:00:00+00:00"})
    outcome = chain.promote(tracked, spec, run_id, report.version, who="t", reason="r")
    assert "not promoted" in outcome
    assert (
        chain.promote(tracked, spec, run_id, report.version, who="t", reason="r")
        == outcome
    )
    tracking.log(run_id, tags={"as_of": OLD.isoformat(), "outcome": report.outcome})
    assert registry.production(SPEC.name) == "2"


def test_a_version_that_needs_approval_is_registered_and_says_how_to_give_it(
    tracked, second, asking
):
    spec, report = asking
    assert report.outcome.startswith(
        f"version {report.version} is registered and waits for approval: gyre promote {SPEC.name} "
        f"{report.version} --replaces 2 --reason …"
    )
    assert stages(tracked, SPEC.name)[report.version] == "Staging"
    assert Registry(tracked).production(SPEC.name) == "2"
    run = Tracking(tracked).run(report.run_id)
    assert (run.status, run.tags["outcome"]) == ("FINISHED", report.outcome)
    reason = {"reason": "late\n\n[Model card](https://example.org)"}
    Tracking(tracked).log(report.run_id, tags=reason)
    _, body = ask(tracked, spec, report.run_id, report.version)
    assert "\n\n    late [Model card](https://example.org)\n\n" in body  # as code
    assert settled(tracked, spec, report.run_id, report.version) is None
    done = settled(tracked, SPEC, second.run_id, "2")
    assert done == "version 2 is in production, in place of 1"
    a_canary_begins_as_shadow(tracked, spec, report)


def a_canary_begins_as_shadow(tracked, spec, report):
    canary = spec.model_copy(update={"rollout": Rollout(policy="canary")})
    assert "--role shadow --reason" in wait_in_shell(
        tracked, canary, report.run_id, report.version
    )
    asked, _ = ask(tracked, canary, report.run_id, report.version)
    assert (
        asked
        == f"Begin the rollout of version {report.version} of {SPEC.name} beside 2?"
    )
    by = {"who": "ann", "reason": "good"}
    said = [
        promote(tracked, canary, report.run_id, report.version, **by) for _ in range(2)
    ]
    assert said[0] == said[1] == Tracking(tracked).run(report.run_id).tags["outcome"]
    assert said[0].startswith(
        f"version {report.version} is the shadow, the first step of its"
    )
    registry = Registry(tracked)
    roles = {"production": "2", "shadow": report.version}
    assert registry.aliases(SPEC.name) == roles
    with closing(Ledger(tracked)) as ledger:
        row = ledger.rows(SPEC.name)[-1]
        assert (row.role, row.evidence) == ("shadow", f"runs:/{report.run_id}")
        assert row.action == "rollout"
        release(registry, ledger, SPEC.name, "shadow", who="ann", why="enough")


def test_a_cause_is_answered_while_a_retraining_goes_on_or_once_one_has_finished(
    tracked, second
):
    spec = SPEC.model_copy(update={"seed": 10})

    def opened(hours: int) -> str | None:
        return chain.open_run(
            tracked,
            spec,
            OLD + timedelta(hours=hours),
            key=f"y {hours}",
            reason="r",
            who="t",
            cause="drift of y",
        )

    assert opened(0) is not None
    assert opened(12) is None
    validate.fail_run(tracked, spec, "y 0")
    run_id = opened(13)
    assert run_id is not None
    Tracking(tracked).set_terminated(run_id)
    validate.fail_run(tracked, spec, "y 13")  # too late: it has finished
    assert opened(14) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"entity_key": {"customer": "int64"}},
            r"entity_key: expected {'customer_id': 'int64'}",
        ),
        (
            {"features": SPEC.features | {"nonsense": "int64"}},
            r"nonsense: expected one of cust",
        ),
        (
            {"features": SPEC.features | {"lifetime_value": "int64"}},
            r"value: expected double",
        ),
        ({"label": "nonsense"}, r"label: 'nonsense' is not of orders: churned_90d"),
    ],
)
def test_a_spec_that_asks_for_what_is_not_there(tracked, change, message):
    with pytest.raises(SettingsError, match=message):
        train(tracked, SPEC.model_copy(update=change), AS_OF, "bad")


def test_before_any_label_has_matured(tracked):
    with pytest.raises(TrainingError, match="no label has matured"):
        train(tracked, SPEC, AS_OF - timedelta(days=360), "early")


def test_an_event_dated_ahead_of_the_clock_keeps_no_training_from_its_start(other):
    table = raw_table(other, ORDERS)
    row = table.read().slice(5, 1)
    ahead = {"order_ts": AS_OF + timedelta(seconds=30), "ingested_at": AS_OF}
    event = pa.Table.from_pylist([row.to_pylist()[0] | ahead], table.schema)
    table.merge(event, ORDERS.key, row.column_names)
    try:
        spec = SPEC.model_copy(update={"seed": 500})
        run_id = chain.open_run(other, spec, AS_OF, key="ahead", reason="r", who="t")
    finally:
        table.merge(row, ORDERS.key, row.column_names)
    assert run_id is not None
    Tracking(other).end(run_id, "only begun", "FAILED")
