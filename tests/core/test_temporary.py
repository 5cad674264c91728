"""A second installation next to the one that is here."""

import pytest

from core.errors import StackError
from core.files import append_secrets
from core.project import ENV_FILE
from core.settings import PORTS, load_settings
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


VALUES = (
    *("/data/or #1", "/data/${HOME}/x$y", "/a ", " /a", "/it's", '/"quoted"', "'all'"),
    *(
        "/back\\slash\\n",
        "/new\nline\r\n",
        "/a[1]*?.csv",
        "/ä 雪",
        "\\",
        "${",
        "#",
        "~/a=b",
    ),
)


def test_what_gyre_writes_into_its_settings_is_read_as_it_was(tmp_path, monkeypatch):
    monkeypatch.delenv("GYRE_HOME", raising=False)
    sources = {f"s{number}": value for number, value in enumerate(VALUES)}
    variables = {
        f"GYRE_SOURCES__{name.upper()}": value for name, value in sources.items()
    }
    file = tmp_path / ENV_FILE
    file.write_text("export GYRE_SOURCES__HAND='/by hand'  # a person's")
    append_secrets(file, variables | {"GYRE_SOURCES__PLAIN": "/data/a.csv"})
    assert "GYRE_SOURCES__PLAIN=/data/a.csv" in file.read_text().splitlines()
    by_hand = {"hand": "/by hand", "plain": "/data/a.csv"}
    assert load_settings(home=tmp_path).sources == sources | by_hand
