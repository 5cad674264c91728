"""A model is a file: every shipped one loads, and a bad one is one line with file, key, remedy."""

import re

import pytest

from core.errors import SettingsError
from core.project import PROJECT
from core.settings import load_settings
from core.spec import MODELS, load_spec, load_specs
from core.spec.monitoring import Rollout
from docs import spec_fields
from feature_repo.published.config import feast_connection

SHIPPED = (MODELS / "customer_churn_model.toml").read_text()
USE_CASES = PROJECT / "tests" / "training"
SPEND = (USE_CASES / "spend/models/next_quarter_spend.toml").read_text()
DELIVERY = (USE_CASES / "deliveries/models/delivery.toml").read_text()
COSTS = SHIPPED[SHIPPED.index("[costs]") : SHIPPED.index("[features]")]
TRAINING = '[training]\nfunction = "shop.training:train"'
RULE = 'rule = "better_than_baseline"'
LIMIT = 'rule = "at_most"'
SEGMENT = 'segment = "customer_segment"'
BEFORE_GATES = SHIPPED[SHIPPED.index(SEGMENT) : SHIPPED.index("[[gates]]")]
FAIR_GATE = '[[gates]]\nmetric = "largest_gap"\nrule = "at_most"\nvalue = 0.2\n\n'
WITHOUT_SEGMENT = BEFORE_GATES.removeprefix(SEGMENT) + FAIR_GATE
POPULATION = SHIPPED[SHIPPED.index("[population]") : SHIPPED.index("[snapshots]")]


def test_the_page_of_the_fields_has_the_text_beside_each_field():
    page = spec_fields.spec()
    assert (
        "| `seed` | whole number ≥ 0 | required | the seed of every random choice"
        in page
    )
    assert "| PSI from which drift is noted. |" in page


def test_every_shipped_model_loads_under_the_name_of_its_file():
    assert [spec.name for spec in load_specs()] == [
        p.stem for p in sorted(MODELS.glob("*.toml"))
    ]


def test_tables_that_are_comments_of_the_shipped_model_are_right_as_written(tmp_path):
    text = re.sub(r"^# (?=\[|\w+ = )", "", SHIPPED, flags=re.MULTILINE)
    (tmp_path / "customer_churn_model.toml").write_text(text)
    spec = load_spec("customer_churn_model", tmp_path)
    assert spec.rollout == Rollout(policy="canary")
    assert spec.promotion.approval
    assert spec.search.trials == 20


FILES = {
    "customer_churn_model": SHIPPED, "next_quarter_spend": SPEND, "delivery": DELIVERY
}  # fmt: skip
EXPORTED_ROLE = 'entity_key = "role"\nscores = { to = "out" }'
WRONG_CHURN = [
    ('= "customer_id"', '= { customer_id = "long" }', r"entity_key\.customer_id: Input should"),
    ('= "customer_id"', '= { lifetime_value = "int64" }', "entity_key: .* in .features. too"),
    (RULE, 'rule = "good"', r"gates\.0: .*'good'.*'at_least'"),
    (RULE, f'{LIMIT}\nvalue = "x"', r"gates\.0\.at_most\.value: Inp"),
    ('segment = "customer_segment"', 'segment = "lifetime_value"', "is not a string of"),
    (BEFORE_GATES, WITHOUT_SEGMENT, "largest_gap needs a segment"),
    (COSTS, "", "costs: a classification needs one"),
    ("threshold = 0.5", "", "threshold: a classification needs one"),
    ('metric = "log_loss"', 'metric = "rmse"', r"gates\.0\.metric: a classification has no rmse"),
    ('type = "logistic_regression"', 'type = "ridge"', r"estimators\.2\.type: 'ridge' is not of"),
    ('name = "customer_churn_model"', 'name = "other"', "name: expected the file's name"),
    ('"@weekly"', '"@fortnightly"', r"schedule: .* cron .* @quarterly .* found '@fortnightly'"),
    ('"@weekly"', '"0 0 31 2 *"', "schedule: .* '0 0 31 2 .' never comes"),
    ('"@weekly"', '"0 0 30 2,2 *"', "schedule: .* never comes"),
    ('"@weekly"', '"0 0 3 * * *"', "schedule: .* five fields.* day of the week.; found '0 0 3"),
    ('"@weekly"', '"0 0 1 1 * 0 2030"', "schedule: .* five fields"),
    ('"@weekly"', '"*/0 * * * *"', "schedule: .* five fields"),
    ("{ low = 3", "{ low = 9", r"estimators\.0: .*space\.max_depth: exp"),
    ("C = { low = 0.001", "C = { low = 0", r"estimators\.2\.space\.C: .*with log 0 < low"),
    ("cooldown_hours = 24", "cooldown_hours = inf", r"monitoring\.cooldown_hours: .* finite"),
    ('every = "month"', 'every = "weeks"', r"snapshots\.every: .*'week' or 'month' \(found 'w"),
    (POPULATION, "", "population: expected one, or rows = .label. in .snapshots."),
    ('entity_key = "customer_id"', EXPORTED_ROLE, r"role: a column of \[scores\]"),
    ("[snapshots]", "[rollout]\nsteps = [25, 5]\n[snapshots]", r"rollout: .*found \[25, 5\]"),
]  # fmt: skip
WRONG_SPEND = [
    ("seed = 7", "seed = 7\nthreshold = 0.5", "threshold: a regression has none"),
    ("seed = 7", 'seed = 7\nclasses = ["a", "b"]', "classes: a regression has none, found a, b"),
    ("[features]", f"{COSTS}\n[features]", "costs: a regression has none"),
    ("[serving]", f"{TRAINING}\n[serving]", "estimators: expected .*, found both"),
    ("[serving]", '[training]\nfunction = "fit"\n[serving]', r"training\.function: String sho"),
    ('metric = "rmse"', 'metric = "largest_gap"', r"gates\.0\..*metric: .*largest_gap"),
    ("[serving]", "[search]\ntrials = 4\n[serving]", "search: expected a space"),
]  # fmt: skip
WRONG_DELIVERY = [
    ('"on_time", ', '"late", ', "classes: expected three or more different names, found early"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "before", "after", "message"),
    [
        *(("customer_churn_model", *change) for change in WRONG_CHURN),
        *(("next_quarter_spend", *change) for change in WRONG_SPEND),
        *(("delivery", *change) for change in WRONG_DELIVERY),
    ],
)
def test_a_wrong_model_is_reported_in_one_line_with_file_and_key(
    tmp_path, name, before, after, message
):
    text = FILES[name]
    assert before in text
    (tmp_path / f"{name}.toml").write_text(text.replace(before, after, 1))
    with pytest.raises(SettingsError, match=message) as refused:
        load_spec(name, tmp_path)
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"{name}.toml: ")
    assert "Value error" not in line


def test_an_unknown_model_is_refused_with_the_list_of_models():
    for name in ("churn", "../core/settings", ""):
        with pytest.raises(SettingsError, match="customer_churn_model"):
            load_spec(name)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("GYRE_EVENTS_URL", "kafka://broker", "expected kafka://HOST:PORT"),
        ("GYRE_EVENTS_URL", "redis://broker:9092", "expected kafka://HOST:PORT"),
        ("GYRE_KAFKA__GROUP_ID", "staging", "its own values of group_id"),
        ("GYRE_EVENTS_PREFIX", "", "GYRE_EVENTS_PREFIX"),
        ("GYRE_PREDICTIONS_TOPIC", "scores", "expected GYRE_EVENTS_URL too"),
    ],
)
def test_a_setting_of_kafka_on_which_a_promise_rests_is_refused(
    monkeypatch, name, value, message
):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=message):
        load_settings()


def test_a_redis_that_feast_cannot_address_is_refused(monkeypatch):
    monkeypatch.setenv("GYRE_REDIS_URL", "redis://[::1]:6379/0")
    with pytest.raises(
        SettingsError, match=r"GYRE_REDIS_URL: .*expected a name or an IPv4 address"
    ):
        load_settings()


def test_the_address_of_redis_is_passed_to_feast(monkeypatch):
    monkeypatch.setenv("GYRE_REDIS_URL", "rediss://user:s%40cret@redis.example:6380/2")
    assert feast_connection(load_settings(), 0.05) == (
        'redis.example:6380,username="user",password="s@cret",db=2,ssl=true,'
        "socket_timeout=0.05,socket_connect_timeout=0.05"
    )


def test_no_run_of_a_model_holds_the_address_of_a_teams_table(tmp_path):
    text = (MODELS / "customer_churn_model.toml").read_text()
    address = "postgresql://gyre:hidden@db.example.com/team"
    keys = [
        f'[scores]\nto = "{address}#scores"\nfrom = "{address}#rows"',
        f'[predictions]\nto = "{address}#predictions"',
        f'[decisions]\nto = "{address}#decisions"',
    ]
    (tmp_path / "customer_churn_model.toml").write_text("\n".join([text, *keys]))
    spec = load_spec("customer_churn_model", tmp_path)
    assert spec.scores.to == f"{address}#scores"
    assert spec.scores.from_ == f"{address}#rows"
    assert spec.decisions.to == f"{address}#decisions"
    assert "hidden" not in spec.model_dump_json()
    assert spec.model_dump_json() == load_spec(spec.name).model_dump_json()
