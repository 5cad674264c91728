"""A model is a file: every shipped one loads, and a bad one is one line with file, key, remedy."""

from __future__ import annotations

import pytest

from stack.errors import SettingsError
from stack.settings import load_settings
from stack.spec import MODELS, load_spec, load_specs

SHIPPED = (MODELS / "customer_churn_model.toml").read_text()


def test_every_shipped_model_loads_under_the_name_of_its_file():
    assert [spec.name for spec in load_specs()] == [p.stem for p in sorted(MODELS.glob("*.toml"))]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('label = "churned_90d"', 'labl = "churned_90d"', "label: Field required"),
        ("seed = 7", "seed = 7\nsede = 8", "sede: Extra inputs are not permitted"),
        ("threshold = 0.5", "threshold = 1.5", r"threshold: Input should be less than 1 \(found"),
        ('type = "random_forest"', 'type = "forest"', r"estimators\.0\.type: Input should be"),
        ('rule = "better_than_trivial"', 'rule = "good"', r"gates\.0\.rule: Input should be"),
        ('metric = "log_loss"', 'metric = "gini"', r"gates\.0\.metric: Input should be"),
        ('lifetime_orders = "int64"', 'lifetime_orders = "long"', r"features\.lifetime_orders: "),
        ('feature = "days_since_last_order"', 'feature = "days"', "population.feature 'days'"),
        ('name = "customer_churn_model"', 'name = "other"', "name: expected the file's name"),
        ("seed = 7", "seed = ", "not TOML"),
        ("below = 180", "below = 0", r"population\.below: Input should be greater than 0"),
    ],
)
def test_a_bad_model_is_one_line_with_file_and_key(tmp_path, before, after, message):
    assert before in SHIPPED
    file = tmp_path / "customer_churn_model.toml"
    file.write_text(SHIPPED.replace(before, after, 1))
    with pytest.raises(SettingsError, match=message) as refused:
        load_spec("customer_churn_model", tmp_path)
    assert str(refused.value).startswith("customer_churn_model.toml: ")
    assert "\n" not in str(refused.value)


def test_a_name_that_is_no_model_gets_the_list_of_those_there_are():
    for name in ("churn", "../stack/settings", ""):
        with pytest.raises(SettingsError, match="customer_churn_model"):
            load_spec(name)


def test_a_bad_setting_is_named_with_its_variable(monkeypatch):
    monkeypatch.setenv("GYRE_SERVING_PORT", "70000")
    with pytest.raises(SettingsError, match=r"GYRE_SERVING_PORT: .*found '70000'"):
        load_settings()


def test_settings_are_read_from_the_environment_and_passed_on(monkeypatch, tmp_path):
    monkeypatch.setenv("GYRE_HOME", str(tmp_path))
    monkeypatch.setenv("GYRE_SOURCES__ORDERS", "orders.csv")
    monkeypatch.setenv("GYRE_REDIS_URL", "rediss://user:secret@redis.example:6380/2")
    settings = load_settings()
    assert (settings.home, settings.sources) == (tmp_path, {"orders": "orders.csv"})
    assert settings.redis_address == "rediss://user:secret@redis.example:6380/2"
    assert settings.feast_connection(0.05) == (
        "redis.example:6380,db=2,socket_timeout=0.05,socket_connect_timeout=0.05,ssl=true,"
        "username=user,password=secret"
    )
