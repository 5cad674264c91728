"""Evidently's report decides: figures, limits and statuses are read from its tests."""

import json

import numpy as np
import pandas as pd
import pytest

from core.spec import MISSING
from core.spec.monitoring import Monitoring
from mlflow_server.api.pages import DISTRIBUTIONS
from training.evaluation.psi import UsualSpread, psi, usual_spread

LIMITS = Monitoring()
DRAW = np.random.default_rng(0)
FULL = pd.DataFrame(
    {
        "orders": DRAW.normal(size=400),
        "plan": DRAW.choice(["a", "b"], 400).astype(object),
        "score": DRAW.random(400),
    }
)
EMPTY = FULL.assign(orders=np.nan)


def f1(**change):
    """A metric on outcomes."""
    from monitoring.measurements.performance import MeasuredMetric  # noqa: PLC0415  (Feast)

    metric = {
        "name": "online/f1",
        "metric": "f1",
        "value": 0.71,
        "low": 0.66,
        "high": 0.76,
        "limit": 0.65,
        "lower_is_better": False,
        "rows": 500,
        "words": "f1 is 0.71",
    }
    return MeasuredMetric(**metric | change)


@pytest.fixture
def results(tmp_path):
    """What a report of `window` says, by name."""
    from monitoring.checks.report import report_results  # noqa: PLC0415  (Evidently)
    from training.evaluation.reference import Reference  # noqa: PLC0415  (scikit-learn)

    def run(rows, window, *, metrics=(), spread=UsualSpread()):  # noqa: B008
        reference = Reference(
            rows=rows.assign(label=1.0), features={}, snapshot=None, threshold=0.5,
            evaluated={}, spread=spread,
        )  # fmt: skip
        checks = report_results(LIMITS, reference, window, metrics, tmp_path)
        return {result.name: result for result in checks}

    return run


def of_status(results, status):
    return {name for name, result in results.items() if result.status == status}


def stored(folder):
    return json.loads((folder / DISTRIBUTIONS).read_text())


def psi_of(column):
    """The PSI of stored shares by its formula."""
    reference = np.clip(column["reference"], 1e-4, None)
    window = np.clip(column["window"], 1e-4, None)
    return np.sum((window - reference) * np.log(window / reference))


def test_the_psi_of_the_stored_shares_is_the_figure_of_the_check(results, tmp_path):
    reference = FULL.assign(
        spend=DRAW.gamma(1, 40, 400),
        flag=DRAW.integers(0, 2, 400).astype(float),
        constant=3.0,
        city=[f"city {place % 30}" for place in range(400)],
    )
    window = reference.assign(
        spend=reference["spend"] * 2,
        flag=1.0,
        plan=np.where(np.arange(400) < 100, "c", reference["plan"]).astype(object),
        city=np.where(np.arange(400) < 40, "a new city", reference["city"]),
        orders=reference["orders"].mask(np.arange(400) < 80),
    )
    by_name = results(reference, window)
    columns = stored(tmp_path)
    assert columns.keys() == {*reference}
    for name, column in columns.items():
        assert psi_of(column) == pytest.approx(by_name[f"psi/{name}"].value, abs=1e-12)
        assert sum(column["parts"]) == pytest.approx(psi_of(column), abs=1e-12)
        assert sum(column["reference"]) == pytest.approx(1)
        assert sum(column["window"]) == pytest.approx(1)
        assert len(column["reference"]) <= 11
    assert columns["spend"]["bins"] == pytest.approx(
        reference["spend"].quantile(np.linspace(0.1, 0.9, 9)).tolist()
    )
    assert columns["orders"]["nulls"] == [0.0, 0.2]
    assert columns["constant"]["bins"] == [3.0]
    assert columns["constant"]["window"] == [1.0]
    assert (columns["flag"]["bins"], columns["flag"]["window"]) == ([0, 1], [0, 1])
    # A category that the reference lacks has a bin of its own, of many it is with the rarest.
    assert {*columns["plan"]["bins"]} == {"a", "b"}
    assert (columns["plan"]["reference"][2], columns["plan"]["window"][2]) == (0, 0.25)
    assert len(columns["city"]["bins"]) <= 4 * 10
    assert "a new city" not in columns["city"]["bins"]
    assert (tmp_path / DISTRIBUTIONS).stat().st_size < 20_000


def test_what_was_not_compared_has_no_distribution(results, tmp_path):
    results(FULL, EMPTY)
    assert stored(tmp_path).keys() == {"plan", "score"}
    results(FULL, FULL[:0], metrics=[f1()])
    assert stored(tmp_path) == {}


UNIT = np.spacing(29.99)
EXTREMES = {
    "some units in the last place apart": 29.99 + UNIT * DRAW.integers(0, 4, 400),
    "near the largest numbers": DRAW.choice([-1.7e308, 1e307, 1.7e308], 400),
    "beyond whole doubles": 2.0**53 + DRAW.integers(0, 3, 400),
    "denormal": DRAW.uniform(5e-324, 1e-320, 400),
}


@pytest.mark.journey
@pytest.mark.parametrize("place", ["window", "reference", "both"])
def test_columns_that_evidently_cannot_draw_are_judged_all_the_same(
    results, place, tmp_path
):
    usual = pd.DataFrame(dict.fromkeys(EXTREMES, FULL["orders"]))
    usual["score"] = FULL["score"]
    extreme = usual.assign(**EXTREMES)
    rows = usual if place == "window" else extreme
    window = usual if place == "reference" else extreme
    by_name = results(rows, window.assign(score=FULL["score"] * 0.5))
    assert of_status(by_name, "unknown") == set()
    assert {"psi/score", "mean/score"} <= of_status(by_name, "bad")
    assert "psi_reference_deciles" in (tmp_path / "report.json").read_text()
    for name in EXTREMES:
        drift = by_name[f"psi/{name}"]
        assert drift.status == ("ok" if place == "both" else "bad")
        assert drift.value == psi(rows[name], window[name])
        test = by_name[f"ks/{name}"]
        if test.value is None:
            assert test.status == "note"
            assert test.words == f"{name}: Evidently cannot measure it: ValueError"


def test_numbers_that_are_close_together_are_measured(results):
    """Evidently has no histogram of them."""
    near = FULL.assign(orders=[0.3, 0.1 + 0.2] * 200)
    by_name = results(near, near.assign(score=near["score"] * 0.5))
    assert by_name["ks/orders"].status == "note"
    assert by_name["psi/orders"].status == "ok"
    assert of_status(by_name, "bad") == {"psi/score", "mean/score"}


def test_a_report_that_cannot_be_written_is_an_alert_beside_its_figures(
    results, tmp_path
):
    (tmp_path / "report.html").mkdir()
    by_name = results(FULL, FULL.assign(orders=FULL["orders"] + 9))
    assert of_status(by_name, "alert") == {"report"}
    assert by_name["report"].words.endswith("was not written: IsADirectoryError")
    assert "psi/orders" in of_status(by_name, "bad")


def test_columns_of_any_name_are_reported(results):
    names = {"orders": "self", "plan": "cls"}
    rows = FULL.rename(columns=names)
    texts = FULL.rename(columns={"plan": "self"})
    for frame in (rows, texts):
        by_name = results(frame, frame)
        assert of_status(by_name, "ok") == by_name.keys()
        assert "psi/self" in by_name


def test_each_column_has_every_comparison_of_its_type(results):
    by_name = results(FULL, FULL, metrics=[f1(), f1(limit=None)])
    features = {"orders": "ks", "plan": "chi2", "score": "ks"}
    expected = {"online/f1", "unseen/orders", "unseen/plan"}
    for name, test in features.items():
        expected |= {f"psi/{name}", f"missing/{name}", f"{test}/{name}"}
    for name in ("orders", "score"):
        expected |= {f"{group}/{name}" for group in ("mean", "p05", "p50", "p95")}
    assert by_name.keys() == expected
    assert of_status(by_name, "ok") == expected
    assert by_name["ks/orders"].limit is None
    assert by_name["psi/orders"].words == "orders: PSI 0.00, drift from 0.25"


def test_a_figure_without_an_interval_has_none_in_its_title(results, tmp_path):
    alone = f1(name="a/b", low=np.nan, high=np.nan)
    results(FULL[:0], FULL[:0], metrics=[f1(), alone])
    page = (tmp_path / "report.json").read_text()
    assert "online/f1 of 500 rows, 95 % interval 0.660 to 0.760" in page
    assert '"a/b of 500 rows"' in page


def test_mean_and_quantiles_of_numbers_are_shown_beside_the_references(results):
    window = FULL.assign(orders=FULL["orders"] * 2, score=FULL["score"] / 2)
    by_name = results(FULL, window)
    for name, column in (("orders", window["orders"]), ("score", window["score"])):
        assert by_name[f"mean/{name}"].value == pytest.approx(column.mean())
        for group, share in (("p05", 0.05), ("p50", 0.5), ("p95", 0.95)):
            result = by_name[f"{group}/{name}"]
            assert result.value == pytest.approx(column.quantile(share))
            assert (result.status, result.limit) == ("ok", None)
    usual = FULL["orders"].quantile(0.95)
    assert f"{usual:.3g} in the reference" in by_name["p95/orders"].words
    assert by_name["mean/orders"].limit is None


def test_results_equal_the_figures_and_tests_of_the_report(results, tmp_path):
    moved = FULL.assign(orders=FULL["orders"] + 1, score=FULL["score"] * 0.5)
    by_name = results(FULL, moved, metrics=[f1(value=0.5)])
    report = json.loads((tmp_path / "report.json").read_text())
    figures = [metric["value"] for metric in report["metrics"]]
    for name in ("psi/orders", "psi/plan", "ks/orders", "mean/score"):
        assert by_name[name].value in figures
    bad = of_status(by_name, "bad")
    assert bad == {"psi/orders", "psi/score", "mean/score", "online/f1"}
    assert [test["status"] for test in report["tests"]].count("FAIL") == len(bad)


@pytest.mark.parametrize(
    ("reference", "window", "status"), [(FULL, EMPTY, "bad"), (EMPTY, FULL, "unknown")]
)
def test_a_column_without_values_is_judged_by_its_missing_share(
    results, reference, window, status
):
    by_name = results(reference, window)
    assert by_name["missing/orders"].status == status
    assert "psi/orders" not in by_name
    assert of_status(by_name, "ok") == by_name.keys() - {"missing/orders"}


def test_a_word_for_a_missing_text_counts_as_missing(results):
    def plans(nulls):
        texts = np.where(np.arange(400) < nulls, MISSING, FULL["plan"])
        return FULL.assign(plan=texts.astype(object))

    by_name = results(plans(40), plans(76))
    assert of_status(by_name, "bad") == {"missing/plan"}
    assert by_name["missing/plan"].words == (
        "plan: 19% missing, 10% in the reference, bad from 15%"
    )


def test_few_values_give_a_note_and_are_never_bad(results):
    moved = FULL.assign(orders=FULL["orders"] + 9, score=FULL["score"] * 0.1)
    by_name = results(FULL, moved.head(100))
    assert of_status(by_name, "bad") == set()
    assert "psi/orders" in of_status(by_name, "note")
    assert by_name["psi/orders"].words.endswith("of 100 values, too few to judge")


def test_predicted_numbers_and_classes_are_compared(results):
    rows = FULL.assign(score=FULL["score"] * 1000, predicted_class=FULL["plan"])
    moved = rows.assign(score=rows["score"] + 400, predicted_class="b")
    by_name = results(rows, moved)
    changed = of_status(by_name, "bad")
    assert changed >= {"psi/score", "mean/score", "psi/predicted_class"}
    assert {by_name[name].kind for name in changed} == {"prediction_drift"}


def test_a_category_is_escaped_in_the_page_of_the_report(results, tmp_path):
    plans = np.where(FULL["plan"] == "a", "</script><script>alert(1)</script>", "<b>")
    rows = FULL.assign(plan=plans.astype(object))
    by_name = results(rows, rows.assign(plan="<script>"))
    assert of_status(by_name, "bad") == {"psi/plan", "unseen/plan"}
    page = (tmp_path / "report.html").read_text()
    assert "script>alert(1)" in page
    assert "<script>alert(1)" not in page


def test_new_categories_are_bad_beyond_the_share_that_the_reference_makes_likely(
    results,
):
    random = np.random.default_rng(5)
    share = 1.0 / np.arange(1, 5001)

    def rows(count, more=0):
        names = random.choice(5000, count, p=share / share.sum()).astype(str)
        postcode = [*names, *["0000"] * more]
        return pd.DataFrame(
            {"postcode": postcode, "score": random.random(len(postcode))}
        )

    reference = rows(5000)
    assert of_status(results(reference, rows(2000)), "bad") == set()
    by_name = results(reference, rows(1800, more=200))
    assert "unseen/postcode" in of_status(by_name, "bad")


def test_the_whole_window_is_counted_and_a_sample_is_compared(results, tmp_path):
    many = FULL[["score"]].sample(200_300, replace=True, random_state=1)
    by_name = results(many, many)
    report = json.loads((tmp_path / "report.json").read_text())
    values = {metric["metric_name"]: metric["value"] for metric in report["metrics"]}
    assert values["RowCount()"] == 200_000
    assert 200_300 in values.values()
    assert of_status(by_name, "bad") == set()


def trips():
    """Days of an event-time label: each trip a row, its carrier's delay one of 16 that move slowly."""
    random = np.random.default_rng(8)
    delays = random.normal(20, 8, 16)
    days = []
    for date in pd.date_range("2026-11-01", periods=14, tz="UTC"):
        delays = delays + random.normal(0, 4, 16)
        rows = {
            "trip": np.arange(500),
            "event_timestamp": date,
            "carrier_delay": random.choice(delays, 500),
            "score": random.random(500),
        }
        days.append(pd.DataFrame(rows))
    return days


@pytest.mark.journey
def test_a_feature_that_varies_by_day_drifts_only_beyond_its_usual_days(results):
    days = trips()
    rows = pd.concat(days, ignore_index=True)
    spread = usual_spread(rows, rows, ["trip"])
    assert list(spread.wide_features(LIMITS)) == ["carrier_delay"]
    compared = rows[["carrier_delay", "score"]]
    for day in (days[2], days[-1]):
        assert of_status(results(compared, day, spread=spread), "bad") == set()
        assert "psi/carrier_delay" in of_status(results(compared, day), "bad")
    shifted = days[-1].assign(carrier_delay=days[-1]["carrier_delay"] + 20)
    drift = results(compared, shifted, spread=spread)["psi/carrier_delay"]
    assert drift.status == "bad"
    assert "normal windows reach" in drift.words
