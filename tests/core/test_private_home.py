"""GYRE_HOME is for its owner, or for a group too; never for another user."""

import grp
import os
import subprocess

import pytest

from core.access.private_home import close_home, make_home
from core.errors import SettingsError
from core.locks import one_writer
from core.settings import Settings
from mlflow_server.server.command import environment
from tests.conftest import BIN

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can be another user"
)
GROUP = "users"
GYRE = "from cli.main import app; app()"


def rights(path):
    return path.stat().st_mode & 0o7777


def can(user, group, *command):
    """Whether a command succeeds as another user of a group."""
    done = subprocess.run(
        command,
        user=user,
        group=group,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


@pytest.fixture
def home(tmp_path):
    """A home, in a folder that every user can enter."""
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o111)
    return tmp_path / "home"


def test_a_new_home_is_for_its_owner_alone(home):
    with one_writer(Settings(home=home), "anything"):
        pass
    assert rights(home) == 0o700
    assert close_home(Settings(home=home)) is None


def test_an_open_home_is_closed_and_that_is_said_once(home):
    home.mkdir(mode=0o755)
    line = close_home(Settings(home=home))
    assert str(home) in line
    assert rights(home) == 0o700
    assert close_home(Settings(home=home)) is None


@pytest.mark.parametrize(
    ("command", "is_open"), [("check", False), ("env", False), ("config", True)]
)
def test_every_command_leaves_a_home_for_its_owner_alone(home, command, is_open):
    if is_open:
        home.mkdir(mode=0o755)
    variables = {**os.environ, "GYRE_HOME": str(home)}
    done = subprocess.run(
        [BIN / "python", "-c", GYRE, command],
        env=variables,
        umask=0o022,
        capture_output=True,
        check=False,
        text=True,
    )
    assert rights(home) == 0o700, done.stderr
    assert (f"{home} is open to its owner alone" in done.stderr) is is_open


def test_the_help_makes_no_home(home):
    variables = {**os.environ, "GYRE_HOME": str(home)}
    for arguments in (["--help"], ["status", "--help"], ["--version"]):
        command = [BIN / "python", "-c", GYRE, *arguments]
        subprocess.run(command, env=variables, check=True, capture_output=True)
    assert not home.exists()


@pytest.mark.parametrize("mode", [None, 0o755, 0o711])
def test_mlflows_command_leaves_a_home_for_its_owner_alone(home, mode):
    if mode:
        home.mkdir(mode=mode)
    environment(Settings(home=home))
    assert rights(home) == 0o700


def test_a_home_that_a_group_can_enter_stays_open_to_it(home):
    home.mkdir()
    home.chmod(0o2770)
    assert make_home(Settings(home=home)) is None
    assert rights(home) == 0o2770


@needs_root
def test_another_user_reads_nothing_in_it(home):
    close_home(Settings(home=home))
    (home / "file").write_text("text")
    assert not can("nobody", "nogroup", "cat", home / "file")
    assert not can("nobody", "nogroup", "ls", home)


@needs_root
def test_a_group_works_in_it_and_others_do_not(home):
    (home / "run").mkdir(parents=True)
    (home / "run" / "secret").touch(0o600)
    settings = Settings(home=home, home_group=GROUP)
    assert "2770" in close_home(settings)
    assert rights(home) == 0o2770
    assert home.stat().st_gid == grp.getgrnam(GROUP).gr_gid
    assert close_home(settings) is None
    assert can("nobody", GROUP, "sh", "-c", f"echo x >> {home}/run/secret")
    assert can("nobody", GROUP, "mkdir", home / "run" / "new")
    assert (home / "run" / "new").stat().st_gid == home.stat().st_gid
    assert not can("nobody", "nogroup", "ls", home)


@needs_root
def test_what_a_process_makes_the_group_may_change(home):
    settings = Settings(home=home, home_group=GROUP)
    close_home(settings)
    code = (
        "from core.settings import load_settings; from core.files import replace_file;"
        "replace_file(load_settings().home / 'data' / 'file', 'x')"
    )
    variables = {**os.environ, "GYRE_HOME": str(home), "GYRE_HOME_GROUP": GROUP}
    subprocess.run([BIN / "python", "-c", code], check=True, env=variables)
    assert rights(home / "data" / "file") == 0o660
    assert can("nobody", GROUP, "sh", "-c", f"echo x >> {home}/data/file")


def test_a_group_that_is_not_there_is_named(home):
    with pytest.raises(SettingsError, match=r"GYRE_HOME_GROUP.*nobodys.*groupadd"):
        close_home(Settings(home=home, home_group="nobodys"))
