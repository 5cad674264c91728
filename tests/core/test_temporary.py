"""A second installation next to the one that is here."""

import pytest

from core.errors import StackError
from core.settings import ENV_FILE, PORTS
from core.temporary import temporary_installation
from tests.conftest import new_settings


def test_an_installation_has_its_own_ports_and_its_folder_is_deleted_unless_given(
    tmp_path,
):
    settings = new_settings(tmp_path / "home")
    with temporary_installation(settings, "trial") as other:
        ports = {getattr(other, f"{name}_port") for name in PORTS}
        assert len(ports) == len(PORTS)
        line = f"GYRE_REDIS_PORT={other.redis_port}"
        assert line in (other.home / ENV_FILE).read_text().splitlines()
    assert not other.home.exists()

    folder = tmp_path / "trial"
    with temporary_installation(settings, "trial", folder) as other:
        other.data.mkdir()
    before = (folder / ENV_FILE).read_bytes()
    with (
        pytest.raises(StackError, match="holds a stack already"),
        temporary_installation(settings, "trial", folder),
    ):
        pass
    assert (folder / ENV_FILE).read_bytes() == before
