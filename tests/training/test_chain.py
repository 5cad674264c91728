"""The stages in order, with real MLflow: from orders to a version in production."""

import json
import re
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import mlflow
import numpy as np
import pyarrow as pa
import pytest

from core.errors import RegistryError, TrainingError
from core.monitoring_spec import Promotion, Rollout
from core.training_spec import Limit
from feature_repo.features import raw_table
from mlflow_server.ledger import Ledger
from mlflow_server.pages import CARD
from mlflow_server.promotion import release
from mlflow_server.pyfunc import read_version
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from tests.conftest import AS_OF
from tests.mlflow_server.conftest import client, stages
from tests.training.chains import open_run
from tests.training.conftest import OLD, ORDERS, SPEC, changed, train
from training import validate
from training.artifacts import GATES, PLOTS, fetched, read
from training.dataset import load_frame, unlearnable
from training.frame import at, content_hash, features, with_features
from training.gate import decide, load_evaluation, model_card
from training.metrics import Scored, all_metrics
from training.register import ask, promote, settled, wait_in_shell
from training.scoring import version_scores
from training.summary import summary
from training.train import THRESHOLDS, fold_scores

ONE_FEATURE = {"lifetime_value": "double"}


@pytest.fixture(scope="module")
def run(tracking, second):
    return tracking.run(second.run_id)


def failed_run(settings, key):
    """The run of `key`, which failed and left version 2 in production."""
    runs = Tracking(settings).runs(SPEC.experiment)
    (run,) = (run for run in runs if run.key == key)
    assert run.status == "FAILED"
    assert Registry(settings).production(SPEC.name) == "2"
    return run


def test_the_first_version_of_a_short_history_uses_the_first_estimator_of_the_spec(
    tracked, tracking, first
):
    run = tracking.run(first.run_id)
    assert first.version == "1"
    assert run.params["estimator"] == SPEC.estimators[0].name
    assert run.params["chosen_by"] == "first of the spec: no folds"
    assert run.params["threshold"] == "0.5"
    assert "champion/log_loss" not in run.metrics
    page = summary(tracked, SPEC, first.version).markdown()
    assert "Nothing was in production to compare with." in page
    with pytest.raises(RegistryError, match="no run of version 99: gyre train"):
        summary(tracked, SPEC, "99")


def test_a_new_model_is_chosen_by_folds_and_replaces_the_old_one_after_its_gates(
    tracked, run
):
    losses = {
        estimator.name: run.metrics[f"fold/log_loss_{estimator.name}"]
        for estimator in SPEC.estimators
    }
    assert run.params["estimator"] == min(losses, key=losses.__getitem__)
    champion_loss = run.metrics["champion/log_loss"]
    baseline_loss = run.metrics["baseline/log_loss"]
    assert run.metrics["test/log_loss"] < min(champion_loss, baseline_loss)
    assert run.metrics["minus_champion/log_loss_upper"] <= 0.005 * champion_loss
    assert Registry(tracked).production(SPEC.name) == "2"
    with closing(Ledger(tracked)) as ledger:
        rows = ledger.rows(SPEC.name)
    changes = [(row.from_version, row.to_version) for row in rows]
    assert changes == [(None, "1"), ("1", "2")]


def test_mlflow_shows_plots_data_lineage_and_a_model_that_every_client_can_load(
    tracked, tracking, second
):
    api = client(tracked)
    plots = {item.path for item in api.list_artifacts(second.run_id, "plots")}
    assert {"plots/confusion_matrix.png", "plots/calibration.png"} < plots
    frame, plan = load_frame(tracking, second.run_id)
    digest = content_hash(at(frame, plan.train))
    dataset = api.get_run(second.run_id).inputs.dataset_inputs[0].dataset
    assert dataset.digest == digest[:36]
    tags = Registry(tracked).version(SPEC.name, second.version).tags
    assert tags["frame_sha256"] == digest
    lineage = {
        "git_commit", "lock_sha256", "spec_sha256", "seed", "as_of", "table.raw.orders",
        "sha256.model.onnx", "definition.customer_features", "definition.service.customer_churn_v1",
    }  # fmt: skip
    assert lineage <= set(tags)
    mlflow.set_tracking_uri(tracked.mlflow_address)
    model = mlflow.pyfunc.load_model(f"models:/{SPEC.name}@production")
    tested = at(frame, plan.test)
    scores = np.asarray(model.predict(features(SPEC, tested))["score"])
    expected = version_scores(tracked, SPEC, "2", tested).scores
    assert scores == pytest.approx(expected, abs=1e-6)


def test_a_training_without_new_data_starts_no_run(tracked, tracking, second):
    runs = tracking.runs(SPEC.experiment)
    report = train(tracked, SPEC, AS_OF + timedelta(hours=1), "again")
    assert (report.run_id, report.version) == (None, None)
    assert "nothing new to learn" in report.outcome
    assert tracking.runs(SPEC.experiment) == runs


def test_the_threshold_is_the_cheapest_on_the_newest_fold_and_is_served(
    tracked, tracking, second, run, evaluation
):
    registry = Registry(tracked)
    contract, _ = read_version(registry, registry.version(SPEC.name, "2"))
    assert float(run.params["threshold"]) == contract.threshold
    frame, plan = load_frame(tracking, second.run_id)
    (chosen,) = (e for e in SPEC.estimators if e.name == run.params["estimator"])
    y, scores = fold_scores(SPEC, chosen, frame, plan.folds[-1])
    costs = {
        value: all_metrics(y, Scored(scores, value), SPEC.costs)["cost"]
        for value in THRESHOLDS
    }
    assert costs[contract.threshold] == pytest.approx(min(costs.values()))
    rows = at(frame, plan.test)
    scored = version_scores(tracked, SPEC, "2", rows)
    metrics = all_metrics(rows["label"].to_numpy(), scored, SPEC.costs)
    assert metrics == pytest.approx(evaluation.challenger)


def test_the_model_card_has_gates_figures_lineage_and_contributions(
    tracking, run, evaluation
):
    card = read(tracking, run.run_id, CARD).decode()
    assert {*evaluation.contributions} == {*SPEC.features}
    name, contribution = next(iter(evaluation.contributions.items()))
    expected = (
        "All 3 gates passed", "better than baseline", "not worse than champion", "onnx proof",
        "version 1", "loyal", "equal opportunity difference", "prevents 20 % of those losses",
        f"<strong>{evaluation.threshold:.2f}</strong>", run.params["test_snapshot"],
        f"{evaluation.rows:,} rows", run.tags["git_commit"], run.tags["frame_sha256"],
        f'<tr><td>{name}</td><td class="n">{contribution:.4f}</td></tr>',
        f"gyre reproduce {SPEC.name} VERSION",
    )  # fmt: skip
    assert [text for text in expected if text not in card] == []
    assert re.findall(r"(?:src|href)=\"(?!data:)|https?://|url\(", card) == []


def test_a_reason_is_escaped_on_the_model_card(tracking, run, evaluation):
    run = replace(run, tags=run.tags | {"reason": "<script>alert(1)</script>"})
    with fetched(tracking, run.run_id, PLOTS) as plots:
        gates = decide(SPEC.gates, evaluation)
        card = model_card(SPEC, run, evaluation, gates, plots)
    assert "&lt;script&gt;" in card
    assert "<script>" not in card


def test_a_champion_that_cannot_be_loaded_stops_the_training_and_stays(
    tracked, tracking, second, tmp_path
):
    registry = Registry(tracked)
    registry.download(registry.version(SPEC.name, "2"), tmp_path)
    content = (tmp_path / "serving.json").read_bytes()
    files = (tracked.home / "mlflow" / "artifacts").rglob("serving.json")
    contracts = [path for path in files if path.read_bytes() == content]
    for contract in contracts:
        contract.write_bytes(content[:-1])
    try:
        with pytest.raises(TrainingError, match=r": refused: .*serving.json"):
            train(tracked, changed(), OLD, "no champion")
    finally:
        for contract in contracts:
            contract.write_bytes(content)
    run = failed_run(tracked, "no champion")
    assert "version 2 cannot be compared with: RegistryError" in run.tags["gate"]
    gates = json.loads(read(tracking, run.run_id, GATES))["gates"]
    passed = {gate["rule"]: gate["passed"] for gate in gates}
    assert not passed["not_worse_than_champion"]
    assert passed["onnx_proof"]


def test_a_version_compared_with_a_champion_of_more_features_is_refused_with_reasons(
    tracked, tracking, second
):
    """The feature that it loses is an audit column, which fairness is measured over."""
    column = "customer_segment"
    fewer = {name: kind for name, kind in SPEC.features.items() if name != column}
    gap = Limit(metric="largest_gap", rule="at_most", value=0.0)
    spec = changed(features=fewer, gates=(*SPEC.gates, gap), audit={column: "string"})
    report = train(tracked, spec, OLD, "audited")
    assert report.version is None
    reason = "log_loss not_worse_than_champion: log_loss minus that of version 2"
    assert reason in report.outcome
    assert "; largest_gap at_most" in report.outcome
    assert Registry(tracked).production(SPEC.name) == "2"
    run = tracking.run(report.run_id)
    assert run.tags["gate"].startswith("refused")
    assert run.status == "FINISHED"
    page = summary(tracked, SPEC).markdown()
    assert re.match(f"### {SPEC.name}: refused by . of 4 gates", page)
    assert "| **refused** | log loss: not worse than champion |" in page
    frame, plan = load_frame(tracking, report.run_id)
    keys = [*SPEC.entity_key, "event_timestamp", "label"]
    rows = with_features(tracked, SPEC, at(frame, plan.test).select(keys))
    scored = version_scores(tracked, SPEC, "2", rows)
    metrics = all_metrics(rows["label"].to_numpy(), scored, SPEC.costs)
    assert run.metrics["champion/log_loss"] == metrics["log_loss"]
    segments = load_evaluation(tracking, report.run_id).segments
    assert {segment.value for segment in segments} == {"new", "repeat", "loyal"}


def label_with_a_bug(orders, snapshots):
    return orders.order_tss


def label_that_is_stopped(orders, snapshots):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("label", "error", "outcome"),
    [
        (label_with_a_bug, AttributeError, "AttributeError: 'Table' object has no "),
        (label_that_is_stopped, KeyboardInterrupt, "KeyboardInterrupt"),
    ],
)
def test_any_error_of_a_training_is_the_outcome_of_its_failed_run(
    tracked, second, label, error, outcome
):
    name = label.__name__
    ORDERS.labels[name] = replace(ORDERS.labels[SPEC.label], expression=label)
    try:
        with pytest.raises(error):
            train(tracked, changed(label=name), AS_OF, name)
    finally:
        del ORDERS.labels[name]
    run = failed_run(tracked, name)
    assert run.tags["outcome"].startswith(outcome)
    assert "\n" not in run.tags["outcome"]


def problems(values, labels, task="classification", left_out=0):
    """What cannot be learnt from 50 rows, of which the test lacks some."""
    spec = SPEC.model_copy(update={"task": task, "features": ONE_FEATURE})
    count = 50 // len(labels)
    column = pa.array(values * count, pa.float64())
    rows = pa.table({"lifetime_value": column, "label": labels * count})
    return unlearnable(spec, rows, rows.slice(left_out))


def test_unusable_training_rows_are_reported_in_one_line():
    assert problems([1.0, 2.0], [0, 1]) == []
    same = "every label of the 50 {} rows is the same"
    lines = [same.format("training"), same.format("test")]
    assert problems([1.0, 2.0], [0, 0]) == lines
    for value in (2.0, None):
        line = "lifetime_value has only one value in the 50 training rows"
        assert problems([value, 2.0], [0, 1]) == [line]
    line = "lifetime_value is infinite in 50 rows"
    assert problems([1.0, -np.inf], [0, 1]) == [line]
    line = "label churned_90d: expected 0 or 1, found 2"
    assert problems([1.0, 2.0], [0, 2]) == [line]
    line = "label churned_90d is null in 20 rows: leave these out"
    assert problems([1.0, 2.0, 3.0, 4.0, 5.0], [0, 1, None, 0, 1]) == [line]
    line = "label churned_90d: expected a number up to 3.4e+38, found nan"
    assert problems([1.0, 2.0], [0.5, float("nan")], "regression") == [line]
    line = "expected at least 50 test rows, found 49; more: test of [snapshots] in "
    assert problems([1.0, 2.0], [0, 1], left_out=1) == [f"{line}{SPEC.name}.toml"]


@pytest.fixture(scope="module")
def approval(tracked, second):
    """A spec whose versions need approval, and its run."""
    gate = Limit(metric="log_loss", rule="at_most", value=50)
    spec = changed(promotion=Promotion(approval=True), gates=(gate,))
    return spec, train(tracked, spec, OLD, "asks")


def test_a_version_that_needs_approval_is_registered_with_the_command_to_approve_it(
    tracked, tracking, second, approval
):
    spec, report = approval
    assert report.outcome.startswith(
        f"version {report.version} is registered and waits for approval: gyre promote {SPEC.name} "
        f"{report.version} --replaces 2 --reason …"
    )
    assert stages(tracked, SPEC.name)[report.version] == "Staging"
    assert Registry(tracked).production(SPEC.name) == "2"
    run = tracking.run(report.run_id)
    assert (run.status, run.tags["outcome"]) == ("FINISHED", report.outcome)
    reason = {"reason": "late\n\n[Model card](https://example.org)"}
    tracking.log(report.run_id, tags=reason)
    _, body = ask(tracked, spec, report.run_id, report.version)
    assert "\n\n    late [Model card](https://example.org)\n\n" in body  # as code
    assert settled(tracked, spec, report.run_id, report.version) is None
    outcome = settled(tracked, SPEC, second.run_id, "2")
    assert outcome == "version 2 is in production, in place of 1"


def test_a_version_older_than_the_newest_promotion_is_not_promoted(
    tracked, tracking, approval
):
    spec, report = approval
    tracking.log(report.run_id, tags={"as_of": "2026-01-01T00:00:00+00:00"})
    try:
        outcome = promote(
            tracked, spec, report.run_id, report.version, who="t", reason="r"
        )
    finally:
        tags = {"as_of": OLD.isoformat(), "outcome": report.outcome}
        tracking.log(report.run_id, tags=tags)
    assert "not promoted: its as_of 2026-01-01" in outcome
    assert Registry(tracked).production(SPEC.name) == "2"


def test_a_canary_starts_as_shadow(tracked, approval):
    spec, report = approval
    canary = spec.model_copy(update={"rollout": Rollout(policy="canary")})
    run_id = report.run_id
    version = report.version
    assert "--role shadow --reason" in wait_in_shell(tracked, canary, run_id, version)
    question, _ = ask(tracked, canary, run_id, version)
    assert (
        question == f"Begin the rollout of version {version} of {SPEC.name} beside 2?"
    )
    for _ in range(2):
        outcome = promote(tracked, canary, run_id, version, who="ann", reason="good")
        assert outcome.startswith(f"version {version} is the shadow, the first step")
    registry = Registry(tracked)
    roles = {"production": "2", "shadow": version}
    assert registry.aliases(SPEC.name) == roles
    with closing(Ledger(tracked)) as ledger:
        row = ledger.rows(SPEC.name)[-1]
        assert (row.role, row.action) == ("shadow", "rollout")
        release(registry, ledger, SPEC.name, "shadow", who="ann", why="enough")


def test_a_cause_is_answered_by_a_running_or_finished_retraining(
    tracked, tracking, second
):
    spec = SPEC.model_copy(update={"seed": 10})

    def answer(hours):
        as_of = OLD + timedelta(hours=hours)
        return open_run(tracked, spec, as_of, f"y {hours}", cause="drift of y")

    assert answer(0) is not None
    assert answer(12) is None
    validate.fail_run(tracked, spec, "y 0")
    run_id = answer(13)
    assert run_id is not None
    tracking.set_terminated(run_id)
    validate.fail_run(tracked, spec, "y 13")  # too late: it has finished
    assert answer(14) is None


def test_an_event_dated_in_the_future_stops_no_training(tracked, tracking, second):
    table = raw_table(tracked, ORDERS)
    row = table.read().slice(5, 1)
    later = {"order_ts": AS_OF + timedelta(seconds=30), "ingested_at": AS_OF}
    event = pa.Table.from_pylist([row.to_pylist()[0] | later], table.schema)
    table.merge(event, ORDERS.key, row.column_names)
    spec = SPEC.model_copy(update={"seed": 500})
    try:
        run_id = open_run(tracked, spec, AS_OF, "later")
    finally:
        table.merge(row, ORDERS.key, row.column_names)
    assert run_id is not None
    tracking.end(run_id, "only begun", "FAILED")
