"""The stages in order, with real MLflow: from orders to a version in production."""

import json
import re
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from itertools import product

import mlflow
import numpy as np
import pyarrow as pa
import pytest

from core.errors import TrainingError
from core.project import CLONE
from core.spec.monitoring import Promotion, Rollout
from core.spec.training import Limit
from docs.browser import PHONE, browser
from feature_engine.offline.raw import raw_table
from mlflow_server.api.comparison import GATES
from mlflow_server.api.pages import CARD
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from mlflow_server.model.pyfunc import read_version
from mlflow_server.promotion.ledger import Ledger
from mlflow_server.promotion.promote import release
from tests.conftest import AS_OF
from tests.mlflow_server.conftest import client, stages
from tests.support.monitoring.page_text import one_line
from tests.support.tools.programs import needs_chromium
from tests.support.training.chains import open_run
from tests.training.conftest import OLD, ORDERS, SPEC, changed, other_hashes, train
from training.artifacts import PLOTS, artifact_bytes, fetched_artifact
from training.data.frame import content_hash, feature_columns, snapshot_rows
from training.evaluation.metrics import Scored, all_metrics
from training.evaluation.results import load_evaluation
from training.model.scoring import version_scores
from training.stages.dataset import load_frame, unlearnable
from training.stages.gate import model_card
from training.stages.register import ask, promote_challenger, settled, wait_in_shell
from training.stages.train import THRESHOLDS, fold_scores
from training.summary import summary


@pytest.fixture(scope="module")
def run(tracking, second):
    return tracking.run(second.run_id)


def failed_run(settings, key, outcome):
    """The run of `key`, which failed and left version 2 in production."""
    runs = Tracking(settings).runs(SPEC.experiment)
    (run,) = (run for run in runs if run.key == key)
    assert run.status == "FAILED"
    assert run.tags["outcome"].startswith(outcome)
    assert "\n" not in run.tags["outcome"]
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
    page = summary(tracked, SPEC, first.version).markdown()
    assert "Nothing was in production to compare with." in page


def test_a_new_model_is_chosen_by_folds_and_replaces_the_old_one_after_its_gates(
    tracked, run
):
    names = [estimator.name for estimator in SPEC.estimators]
    losses = [run.metrics[f"fold/log_loss_{name}"] for name in names]
    assert run.metrics[f"fold/log_loss_{run.params['estimator']}"] == min(losses)
    champion_loss = run.metrics["champion/log_loss"]
    baseline_loss = run.metrics["baseline/log_loss"]
    assert run.metrics["test/log_loss"] < min(champion_loss, baseline_loss)
    assert run.metrics["log_loss"] == run.metrics["test/log_loss"]
    mlflow.set_tracking_uri(tracked.mlflow_address)
    best = mlflow.search_runs(
        experiment_names=[SPEC.experiment], order_by=["metrics.f1 DESC"]
    )
    f1 = best["metrics.f1"].dropna()
    assert f1.iloc[0] == f1.max()
    assert run.metrics["minus_champion/log_loss_upper"] <= 0.005 * champion_loss
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
    digest = content_hash(snapshot_rows(frame, plan.train))
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
    tested = snapshot_rows(frame, plan.test)
    scores = np.asarray(model.predict(feature_columns(SPEC, tested))["score"])
    expected = version_scores(tracked, SPEC, "2", tested).scores
    assert scores == pytest.approx(expected, abs=1e-6)


def test_the_threshold_is_the_cheapest_on_the_newest_fold_and_is_served(
    tracked, tracking, second, run
):
    registry = Registry(tracked)
    contract, _ = read_version(registry, registry.version(SPEC.name, "2"))
    assert float(run.params["threshold"]) == contract.threshold
    frame, plan = load_frame(tracking, second.run_id)
    estimators = {estimator.name: estimator for estimator in SPEC.estimators}
    chosen = estimators[run.params["estimator"]]
    y, scores = fold_scores(SPEC, chosen, frame, plan.folds[-1])
    costs = {
        value: all_metrics(y, Scored(scores, value), SPEC.costs)["cost"]
        for value in THRESHOLDS
    }
    assert costs[contract.threshold] == pytest.approx(min(costs.values()))


def test_the_model_card_has_gates_figures_lineage_and_contributions(
    tracking, run, evaluation
):
    card = one_line(artifact_bytes(tracking, run.run_id, CARD).decode())
    assert {*evaluation.contributions} == {*SPEC.features}
    name, contribution = next(iter(evaluation.contributions.items()))
    expected = (
        "All 3 gates passed", "better than baseline", "not worse than champion", "same scores",
        "version 1", "loyal", "equal opportunity difference", "prevents 20 % of those losses",
        f"<strong>{evaluation.threshold:.2f}</strong>", run.params["test_snapshot"],
        f"{evaluation.rows:,} rows", run.tags["git_commit"], run.tags["frame_sha256"],
        f'<tr><td>{name}</td><td class="n">{contribution:.4f}</td></tr>',
        f"gyre reproduce {SPEC.name} <b>2</b>", "version <b>2</b> · as of", "&lt;b&gt;second&lt;/b&gt;",
    )  # fmt: skip
    assert [text for text in expected if text not in card] == []
    assert "<b>second</b>" not in card
    cells = evaluation.challenger
    share = 100 * cells["tp"] / (cells["tp"] + cells["fn"])
    assert f"<strong>{share:.1f} %</strong>{cells['tp']:,.0f}</td>" in card
    assert re.findall(r"(?:src|href)=\"(?!data:)|https?://|url\(", card) == []


def colours(style):
    """Values of the variables of a style sheet by name, in light and in dark."""
    light, dark, *_ = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#\w+)", text)) for text in (light, dark)]


def test_the_model_card_has_the_colours_of_the_console(tracking, run):
    card = artifact_bytes(tracking, run.run_id, CARD).decode()
    static = CLONE / "monitoring" / "console" / "static"
    of_console = colours((static / "style.css").read_text())
    for ours, theirs in zip(colours(card), of_console, strict=True):
        assert ours
        assert ours.items() <= theirs.items()


@needs_chromium
def test_the_model_card_fits_a_phone_and_follows_the_readers_scheme(
    tracking, run, tmp_path
):
    file = tmp_path / CARD
    file.write_bytes(artifact_bytes(tracking, run.run_id, CARD))
    backgrounds = set()
    with browser() as chromium:
        for width, dark in product((1440, PHONE), (False, True)):
            chromium.open(file.as_uri(), width, dark=dark)
            expression = """[document.documentElement.scrollWidth,
              [...document.querySelectorAll("main *")].filter(part =>
                part.getBoundingClientRect().right > innerWidth && !part.closest(".wide")
              ).length, getComputedStyle(document.body).backgroundColor].join("|")"""
            answer = chromium.do("Runtime.evaluate", expression=expression)
            needed, cut, background = answer["result"]["value"].split("|")
            assert (needed, cut) == (f"{width}", "0")
            backgrounds.add((dark, background))
    assert len(backgrounds) == len(dict(backgrounds).values()) == 2


def test_the_model_card_has_the_parameters_of_a_factory_by_their_names(
    tracking, run, evaluation
):
    params = run.params | {"shop.models:cautious.leaves": "15"}
    factory_run = replace(run, params=params)
    with fetched_artifact(tracking, run.run_id, PLOTS) as plots:
        card = model_card(SPEC, factory_run, evaluation, [], plots)
    assert ", leaves 15" in card


@pytest.mark.journey
def test_a_champion_that_cannot_be_loaded_stops_the_training_and_stays(
    tracked, tracking, second
):
    with (
        other_hashes(tracked, "2", "sha256.serving.json"),
        pytest.raises(TrainingError, match=r": refused: .*serving.json"),
    ):
        train(tracked, changed(), OLD, "no champion")
    run = failed_run(tracked, "no champion", f"{SPEC.name}: refused: ")
    assert "version 2 cannot be compared with: RegistryError" in run.tags["gate"]
    gates = json.loads(artifact_bytes(tracking, run.run_id, GATES))["gates"]
    passed = {gate["rule"]: gate["passed"] for gate in gates}
    assert not passed["not_worse_than_champion"]
    assert passed["same_scores"]


@pytest.mark.journey
def test_a_version_compared_with_a_champion_of_more_features_is_refused_with_reasons(
    tracked, tracking, run
):
    """The feature that it loses is an audit column, which fairness is measured over."""
    column = "customer_segment"
    fewer = {name: kind for name, kind in SPEC.features.items() if name != column}
    gap = Limit(metric="largest_gap", rule="at_most", value=0.0)
    spec = changed(features=fewer, gates=(*SPEC.gates, gap), audit={column: "string"})
    report = train(tracked, spec, AS_OF, "audited")
    assert report.version is None
    reason = "log_loss not_worse_than_champion: log_loss minus that of version 2"
    assert reason in report.outcome
    assert "; largest_gap at_most" in report.outcome
    assert Registry(tracked).production(SPEC.name) == "2"
    refused = tracking.run(report.run_id)
    assert refused.tags["gate"].startswith("refused")
    assert refused.status == "FINISHED"
    assert refused.metrics["champion/log_loss"] == run.metrics["test/log_loss"]
    segments = load_evaluation(tracking, report.run_id).segments
    assert {segment.value for segment in segments} == {"repeat", "loyal"}
    assert {segment.column for segment in segments} == {column}
    page = summary(tracked, SPEC).markdown()
    assert re.match(f"### {SPEC.name}: refused by . of 4 gates", page)
    assert "| **refused** | log loss: not worse than champion |" in page


def label_that_is_stopped(orders, snapshots):
    raise KeyboardInterrupt


def test_whatever_ends_a_training_is_the_outcome_of_its_failed_run(tracked, second):
    label = replace(ORDERS.labels[SPEC.label], expression=label_that_is_stopped)
    ORDERS.labels["stopped"] = label
    try:
        with pytest.raises(KeyboardInterrupt):
            train(tracked, changed(label="stopped"), AS_OF, "stopped")
    finally:
        del ORDERS.labels["stopped"]
    failed_run(tracked, "stopped", "KeyboardInterrupt")


@pytest.mark.parametrize(
    ("values", "labels", "problem"),
    [
        ([None, 2.0], [0, 1], "lifetime_value has only one value in the 50 training rows"),
        ([1.0, -np.inf], [0, 1], "lifetime_value is infinite in 50 rows"),
        ([1.0, 2.0], [0, 2], "label churned_90d: expected 0 or 1, found 2"),
        ([1.0, 2.0, 3.0, 4.0, 5.0], [0, 1, None, 0, 1],
         "label churned_90d is null in 20 rows: leave these out"),
        ([1.0, 2.0], [0.5, np.nan],
         "label churned_90d: expected a number up to 3.4e+38, found nan"),
    ],
)  # fmt: skip
def test_unusable_training_rows_are_reported_in_one_line(values, labels, problem):
    task = "regression" if 0.5 in labels else "classification"
    changes = {"task": task, "features": {"lifetime_value": "double"}}
    spec = SPEC.model_copy(update=changes)
    count = 50 // len(labels)
    column = pa.array(values * count, pa.float64())
    rows = pa.table({"lifetime_value": column, "label": labels * count})
    few = f"expected at least 50 test rows, found 49; more: test of [snapshots] in {spec.name}.toml"
    assert unlearnable(spec, rows, rows) == [problem]
    assert unlearnable(spec, rows, rows.slice(1))[0] == few


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
    version = report.version
    assert report.outcome.startswith(
        f"version {version} is registered and waits for approval: gyre promote {SPEC.name} "
        f"{version} --replaces 2 --reason …"
    )
    assert stages(tracked, SPEC.name)[version] == "Staging"
    assert Registry(tracked).production(SPEC.name) == "2"
    run = tracking.run(report.run_id)
    assert (run.status, run.tags["outcome"]) == ("FINISHED", report.outcome)
    reason = "late\n\n[Model card](https://example.org)"
    tracking.log(report.run_id, tags={"reason": reason})
    _, body = ask(tracked, spec, report.run_id, version)
    assert "\n\n    late [Model card](https://example.org)\n\n" in body  # as code


def test_a_version_older_than_the_newest_promotion_is_not_promoted(
    tracked, tracking, approval
):
    spec, report = approval
    candidate = (tracked, spec, report.run_id, report.version)
    tracking.log(report.run_id, tags={"as_of": "2026-01-01T00:00:00+00:00"})
    try:
        outcome = promote_challenger(*candidate, who="t", reason="r")
        assert settled(*candidate) == outcome
    finally:
        tags = {"as_of": OLD.isoformat(), "outcome": report.outcome}
        tracking.log(report.run_id, tags=tags)
    assert "not promoted: its as_of 2026-01-01" in outcome
    assert Registry(tracked).production(SPEC.name) == "2"


def test_a_canary_starts_as_shadow(tracked, approval):
    spec, report = approval
    canary = spec.model_copy(update={"rollout": Rollout(policy="canary")})
    version = report.version
    candidate = (tracked, canary, report.run_id, version)
    assert "--rollout --reason" in wait_in_shell(*candidate)
    subject = f"Begin the rollout of version {version} of {SPEC.name} beside 2?"
    assert ask(*candidate)[0] == subject
    for _ in range(2):
        outcome = promote_challenger(*candidate, who="ann", reason="good")
        assert outcome.startswith(f"version {version} is the shadow, the first step")
    registry = Registry(tracked)
    roles = {"production": "2", "shadow": version}
    assert registry.aliases(SPEC.name) == roles
    with closing(Ledger(tracked)) as ledger:
        row = ledger.rows(SPEC.name)[-1]
        assert (row.role, row.action) == ("shadow", "rollout")
        release(registry, ledger, SPEC.name, "shadow", who="ann", why="enough")


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
