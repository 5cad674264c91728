"""A model is a file: every shipped one loads, and a bad one is one line with file, key, remedy."""

from __future__ import annotations

import pytest

from core.errors import SettingsError
from core.monitoring_spec import Rollout
from core.settings import PROJECT, load_settings
from core.spec import MODELS, load_spec, load_specs
from feature_repo.feast_config import feast_connection

SHIPPED = (MODELS / "customer_churn_model.toml").read_text()
SPEND = (PROJECT / "tests/training/spend/models/next_quarter_spend.toml").read_text()
COSTS = SHIPPED[SHIPPED.index("[costs]") : SHIPPED.index("[features]")]
TRAINING = '[training]\nfunction = "shop.training:train"'
LIMIT = 'rule = "at_most"'
POPULATION = SHIPPED[SHIPPED.index("[population]") : SHIPPED.index("[snapshots]")]


def test_every_shipped_model_loads_under_the_name_of_its_file():
    assert [spec.name for spec in load_specs()] == [
        p.stem for p in sorted(MODELS.glob("*.toml"))
    ]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            '= "customer_id"',
            '= { customer_id = "long" }',
            r"entity_key\.customer_id: Input should",
        ),
        (
            '= "customer_id"',
            '= { lifetime_value = "int64" }',
            "entity_key: .* in .features. too",
        ),
        ('label = "churned_90d"', 'labl = "churned_90d"', "label: Field required"),
        ("seed = 7", "seed = 7\nsede = 8", "sede: unknown key; did you mean seed"),
        (
            'type = "random_forest"',
            'type = "forest"',
            r"estimators\.0\.type: 'forest' is not of a class.* xgboost, lightgbm, or package",
        ),
        (
            'rule = "better_than_baseline"',
            'rule = "good"',
            r"gates\.0: .*'good'.*'at_least'",
        ),
        (
            'rule = "better_than_baseline"\n',
            "",
            r"gates\.0: Unable to extract tag .*'rule'",
        ),
        (
            'metric = "log_loss"',
            'metric = "gini"',
            r"gates\.0\.\w+\.metric: .*'log_loss'.*'gini'",
        ),
        (
            "margin_percent = 0.5",
            "margin = 0.5",
            r"gates\.1\.\w+\.margin: unknown key; did you mean margin_percent",
        ),
        (
            'rule = "better_than_baseline"',
            'rule = "at_most"',
            r"gates\.0\.at_most\.value: Field req",
        ),
        (
            'rule = "better_than_baseline"',
            f'{LIMIT}\nvalue = "x"',
            r"gates\.0\.at_most\.value: Inp",
        ),
        (
            'segment = "customer_segment"',
            'segment = "age"',
            "segment: 'age' is not a string of",
        ),
        (
            'segment = "customer_segment"',
            'segment = "lifetime_value"',
            "is not a string of",
        ),
        ("[costs]", "[cost]", "cost: unknown key; did you mean costs"),
        (COSTS, "", "costs: a classification needs one"),
        ("threshold = 0.5", "", "threshold: a classification needs one"),
        (
            "seed = 7",
            'seed = 7\ntask = "regression"',
            "threshold: a regression has none",
        ),
        (
            'metric = "log_loss"',
            'metric = "rmse"',
            r"gates\.0\.metric: a classification has no rmse",
        ),
        (
            'type = "logistic_regression"',
            'type = "ridge"',
            r"estimators\.2\.type: 'ridge' is not of",
        ),
        (
            'feature = "days_since_last_order"',
            'feature = "days"',
            "population.feature: 'days'",
        ),
        (
            'name = "customer_churn_model"',
            'name = "other"',
            "name: expected the file's name",
        ),
        ("seed = 7", "seed = ", "not TOML"),
        (
            '"@weekly"',
            '"@fortnightly"',
            r"schedule: .* cron .* @quarterly .* found '@fortnightly'",
        ),
        ('"@weekly"', '"0 25 * * *"', r"schedule: .* found '0 25 \* \* \*'"),
        (
            "max_depth = { low = 3",
            "max_depth = { low = 9",
            r"estimators\.0: .*space\.max_depth: exp",
        ),
        (
            "C = { low = 0.001",
            "C = { low = 0",
            r"estimators\.2\.space\.C: .*with log 0 < low",
        ),
        (
            "low = 3, high",
            "from = 3, high",
            r"estimators\.0\.space\.max_depth\.low: Field req",
        ),
        (
            "cooldown_hours = 24",
            "cooldown_hours = inf",
            r"monitoring\.cooldown_hours: .* finite",
        ),
        (
            'every = "month"',
            'every = "weeks"',
            r"snapshots\.every: .*'week' or 'month' \(found 'w",
        ),
        (POPULATION, "", "population: expected one, or rows = .label. in .snapshots."),
        (
            "[snapshots]",
            "[rollout]\nsteps = [25, 5]\n[snapshots]",
            r"rollout: .*found \[25, 5\]",
        ),
        (
            "[snapshots]",
            "[rollout]\nlatncy = 3\n[snapshots]",
            r"rollout\.latncy: unknown key; did you mean latency",
        ),
    ],
)
def test_a_bad_model_is_one_line_with_file_and_key(tmp_path, before, after, message):
    assert before in SHIPPED
    file = tmp_path / "customer_churn_model.toml"
    file.write_text(SHIPPED.replace(before, after, 1))
    with pytest.raises(SettingsError, match=message) as refused:
        load_spec("customer_churn_model", tmp_path)
    lines = str(refused.value).splitlines()
    assert [
        line for line in lines if not line.startswith("customer_churn_model.toml: ")
    ] == []
    assert "Value error" not in str(refused.value)


def test_a_label_with_rows_of_its_own_needs_no_population(tmp_path):
    file = tmp_path / "customer_churn_model.toml"
    of_label = SHIPPED.replace(POPULATION, "").replace(
        "[snapshots]", '[snapshots]\nrows = "label"'
    )
    file.write_text(of_label)
    spec = load_spec("customer_churn_model", tmp_path)
    assert (spec.population, spec.snapshots.test) == (None, 1)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("seed = 7", "seed = 7\nthreshold = 0.5", "threshold: a regression has none"),
        ("[features]", f"{COSTS}\n[features]", "costs: a regression has none"),
        (
            'type = "ridge"',
            'type = "logistic_regression"',
            "expected one of ridge, random_forest, ",
        ),
        ("[serving]", f"{TRAINING}\n[serving]", "estimators: expected .*, found both"),
        (
            "[serving]",
            '[training]\nfunction = "fit"\n[serving]',
            r"training\.function: String sho",
        ),
        (
            'metric = "rmse"',
            'metric = "auc"',
            r"gates\.0\.metric: a regression has no auc",
        ),
        (
            'metric = "rmse"',
            'metric = "largest_gap"',
            r"gates\.0\..*metric: .*largest_gap",
        ),
        ("[serving]", "[search]\ntrials = 4\n[serving]", "search: expected a space"),
    ],
)
def test_a_bad_regression_is_one_line_too(tmp_path, before, after, message):
    file = tmp_path / "next_quarter_spend.toml"
    file.write_text(SPEND)
    assert load_spec("next_quarter_spend", tmp_path).loss == "rmse"
    assert before in SPEND
    file.write_text(SPEND.replace(before, after, 1))
    with pytest.raises(SettingsError, match=message) as refused:
        load_spec("next_quarter_spend", tmp_path)
    assert str(refused.value).startswith("next_quarter_spend.toml: ")
    assert "\n" not in str(refused.value)


def test_a_key_is_a_name_or_a_table_of_columns(tmp_path):
    file, both = (
        tmp_path / "customer_churn_model.toml",
        {"customer_id": "int64", "kind": "string"},
    )
    said = '{ customer_id = "int64", kind = "string" }'
    file.write_text(SHIPPED.replace('= "customer_id"', f"= {said}"))
    assert load_spec("customer_churn_model", tmp_path).entity_key == both
    spec = load_spec("customer_churn_model")
    assert spec.entity_key == {"customer_id": "int64"}


def test_the_rollout_shown_in_the_shipped_model_is_the_default_but_for_its_policy(
    tmp_path,
):
    shown = SHIPPED[SHIPPED.index("# [rollout]") : SHIPPED.index("# [search]")]
    lines = [line.removeprefix("# ") for line in shown.splitlines()]
    text = SHIPPED.replace(shown, "\n".join(lines) + "\n\n")
    (tmp_path / "customer_churn_model.toml").write_text(text)
    found = load_spec("customer_churn_model", tmp_path).rollout
    assert found == Rollout(policy="canary")
    assert load_spec("customer_churn_model").rollout == Rollout(policy="direct")


def test_a_gate_on_fairness_needs_a_segment(tmp_path):
    gate = (
        '[[gates]]\nmetric = "largest_gap"\nrule = "at_most"\nvalue = 0.2\n\n[[gates]]'
    )
    fair = SHIPPED.replace("[[gates]]", gate, 1)
    file = tmp_path / "customer_churn_model.toml"
    file.write_text(fair)
    assert load_spec("customer_churn_model", tmp_path).gates[0].metric == "largest_gap"
    file.write_text(fair.replace('segment = "customer_segment"', ""))
    with pytest.raises(SettingsError, match="largest_gap needs a segment"):
        load_spec("customer_churn_model", tmp_path)


def test_a_name_that_is_no_model_gets_the_list_of_those_there_are():
    for name in ("churn", "../core/settings", ""):
        with pytest.raises(SettingsError, match="customer_churn_model"):
            load_spec(name)


def test_a_bad_setting_is_named_with_its_variable(monkeypatch):
    monkeypatch.setenv("GYRE_SERVING_PORT", "70000")
    with pytest.raises(SettingsError, match=r"GYRE_SERVING_PORT: .*found '70000'"):
        load_settings()


def test_a_redis_that_feast_cannot_address_is_refused(monkeypatch):
    monkeypatch.setenv("GYRE_REDIS_URL", "redis://[::1]:6379/0")
    with pytest.raises(
        SettingsError, match=r"GYRE_REDIS_URL: .*expected a name or an IPv4 address"
    ):
        load_settings()


def test_settings_are_read_from_the_environment_and_passed_on(monkeypatch, tmp_path):
    monkeypatch.setenv("GYRE_HOME", str(tmp_path))
    monkeypatch.setenv("GYRE_SOURCES__ORDERS", "orders.csv")
    monkeypatch.setenv("GYRE_REDIS_URL", "rediss://user:s%40cret@redis.example:6380/2")
    settings = load_settings()
    assert (settings.home, settings.sources) == (tmp_path, {"orders": "orders.csv"})
    assert settings.redis_address == "rediss://user:s%40cret@redis.example:6380/2"
    assert feast_connection(settings, 0.05) == (
        'redis.example:6380,username="user",password="s@cret",db=2,ssl=true,'
        "socket_timeout=0.05,socket_connect_timeout=0.05"
    )
