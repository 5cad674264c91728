"""A second installation beside the one that is here."""

from __future__ import annotations

import pytest

from core.errors import StackError
from core.settings import ENV_FILE, PORTS, load_settings
from core.temporary import temporary_installation
from tests.conftest import new_settings


def test_it_has_another_home_and_other_ports_and_goes_in_the_end(tmp_path):
    settings = new_settings(tmp_path / "home")
    with temporary_installation(settings, "trial") as beside:
        ports = {getattr(beside, f"{name}_port") for name in PORTS}
        assert len(ports) == len(PORTS)
        assert beside.home.is_dir()
        assert "gyre-trial-" in beside.home.name
        line = f"GYRE_REDIS_PORT={beside.redis_port}"
        assert line in (beside.home / ENV_FILE).read_text().splitlines()
    assert not beside.home.exists()
    assert not settings.home.exists()


def test_a_folder_of_ones_own_stays_and_is_not_used_where_it_holds_a_stack(tmp_path):
    settings, folder = new_settings(tmp_path / "home"), tmp_path / "beside"
    with temporary_installation(settings, "trial", folder) as beside:
        beside.data.mkdir()
    before = (folder / "gyre.env").read_bytes()
    with (
        pytest.raises(StackError, match="holds a stack already"),
        temporary_installation(settings, "trial", folder),
    ):
        pass
    assert (folder / "gyre.env").read_bytes() == before


def test_what_a_home_keeps_already_it_keeps_beside_its_free_ports(tmp_path):
    (tmp_path / "gyre.env").write_text("GYRE_SOURCES__ORDERS=orders.csv")
    with temporary_installation(new_settings(tmp_path), "trial", tmp_path) as own:
        kept = load_settings(home=tmp_path)
    assert kept.sources == {"orders": "orders.csv"}
    assert kept.serving_port == own.serving_port
