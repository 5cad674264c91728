"""When a promotion is from: by the clock, but in a home where history is replayed."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import pytest

from mlflow_server.ledger import Ledger, now
from mlflow_server.promotion import promote, rollback
from stack.environment import airflow_environment, make_secrets
from stack.errors import SettingsError
from stack.settings import load_settings

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_server.registry import Registry
    from stack.settings import Settings

THEN, LATER = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)


@pytest.mark.parametrize("last", [None, date(2026, 11, 20)])
def test_history_rules_the_ledger_in_a_replays_home_and_in_no_other(
    registry: Registry, settings: Settings, model: str, last: date | None, tmp_path: Path
) -> None:
    own = settings.model_copy(update={"home": tmp_path, "replay": last})
    began = now()
    with closing(Ledger(own, THEN)) as ledger:
        promote(registry, ledger, model, "1", who="ann", why="first")
        promote(registry, ledger, model, "2", who="ann", why="better")
    with closing(Ledger(own, LATER)) as ledger:
        back = rollback(registry, ledger, model, who="ann", why="worse")
        assert back.to_version == "1"
        times = [row.time for row in ledger.rows(model)]
    if last:
        assert times == [THEN, THEN, LATER]
    else:
        assert all(began <= time <= now() for time in times)


def test_a_home_is_a_replay_by_its_own_file_and_by_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gyre.env").write_text("GYRE_REPLAY=2026-11-20\n")
    replay, normal = load_settings(home=tmp_path), load_settings(home=tmp_path / "normal")
    assert (replay.replay, normal.replay) == (date(2026, 11, 20), None)
    monkeypatch.setenv("GYRE_REPLAY", "2026-11-20")
    with pytest.raises(SettingsError, match="GYRE_REPLAY: unset it; it belongs in the"):
        load_settings(home=tmp_path / "normal")


def test_what_would_act_as_of_today_is_paused_where_history_is_replayed(tmp_path: Path) -> None:
    key = "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION"
    for home, last, paused in (("a", None, "False"), ("b", date(2026, 11, 20), "True")):
        own = load_settings(home=tmp_path / home, replay=last)
        make_secrets(own)
        assert airflow_environment(own)[key] == paused
