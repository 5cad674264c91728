"""A second installation next to the one that is here."""

import pytest

from core.errors import StackError
from core.settings import ENV_FILE, PORTS
from core.temporary import temporary_installation
from tests.conftest import new_settings


def test_a_temporary_installation_has_its_own_home_and_ports_and_is_deleted_in_the_end(
    tmp_path,
):
    settings = new_settings(tmp_path / "home")
    with temporary_installation(settings, "trial") as other:
        ports = {getattr(other, f"{name}_port") for name in PORTS}
        assert len(ports) == len(PORTS)
        assert other.home.is_dir()
        assert "gyre-trial-" in other.home.name
        line = f"GYRE_REDIS_PORT={other.redis_port}"
        assert line in (other.home / ENV_FILE).read_text().splitlines()
    assert not other.home.exists()
    assert not settings.home.exists()


def test_a_given_folder_stays_and_is_refused_if_it_holds_a_stack(tmp_path):
    settings = new_settings(tmp_path / "home")
    folder = tmp_path / "trial"
    with temporary_installation(settings, "trial", folder) as other:
        other.data.mkdir()
    before = (folder / "gyre.env").read_bytes()
    with (
        pytest.raises(StackError, match="holds a stack already"),
        temporary_installation(settings, "trial", folder),
    ):
        pass
    assert (folder / "gyre.env").read_bytes() == before
