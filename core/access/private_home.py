"""GYRE_HOME is for its owner alone: it has features, events, predictions and databases.

With GYRE_HOME_GROUP a Unix group works in it too, such as that of the user whom a team's Airflow runs
tasks as. Nobody else can enter it, so the rights of what is in it do not matter to others.
"""

import grp
import os
import stat
from pathlib import Path

from core.errors import SettingsError
from core.settings import Settings

OWNER_ALONE = 0o700
WITH_GROUP = 0o2770
"""What is made in the folder belongs to the group (the bit 2000)."""
RIGHTS_OF_OTHERS = 0o7


def make_home(settings: Settings) -> str | None:
    """Make the home, or close one that every user can enter: see `close_home`.

    A home that only a group can enter stays as it is, as GYRE_HOME_GROUP may be a variable of the
    shell of `gyre up` alone.
    """
    home = settings.home
    if home.exists() and not home.stat().st_mode & RIGHTS_OF_OTHERS:
        return None
    return close_home(settings)


def close_home(settings: Settings) -> str | None:
    """Take the rights that other users have to the home; make it if it is not there.

    A home that belongs to another user, as a volume of Kubernetes may, stays as it is.

    Returns:
        A line about what was changed; None: the home was closed before, or is new.

    Raises:
        SettingsError: There is no group GYRE_HOME_GROUP, or the owner is no member of it.

    """
    home = settings.home
    is_new = not home.exists()
    home.mkdir(mode=OWNER_ALONE, parents=True, exist_ok=True)
    state = home.stat()
    if state.st_uid != os.geteuid():
        return None
    rights = WITH_GROUP if settings.home_group else OWNER_ALONE
    group = group_id(settings) if settings.home_group else state.st_gid
    if stat.S_IMODE(state.st_mode) == rights and state.st_gid == group:
        return None
    if settings.home_group:
        _share(home, group)
    home.chmod(rights)
    readers = settings.home_group or "its owner alone"
    return None if is_new else f"{home} is open to {readers} from now on ({rights:o})"


def secret_mode(settings: Settings) -> int:
    """Return the rights of a file with a secret that tasks of the group read."""
    return 0o640 if settings.home_group else 0o600


def group_id(settings: Settings) -> int:
    """Return the number of the group GYRE_HOME_GROUP.

    Raises:
        SettingsError: There is no such group.

    """
    try:
        return grp.getgrnam(str(settings.home_group)).gr_gid
    except KeyError as exc:
        text = f"GYRE_HOME_GROUP: there is no Unix group {settings.home_group}"
        raise SettingsError(f"{text}: groupadd {settings.home_group}") from exc


def _share(home: Path, group: int) -> None:
    """Give all that is in a home to a group, which may do with it what its owner may."""
    try:
        os.chown(home, -1, group)
        for folder, _, files in os.walk(home):
            os.chown(folder, -1, group)
            Path(folder).chmod(WITH_GROUP)
            for name in files:
                path = Path(folder, name)
                if path.is_symlink() or not path.is_file():
                    continue
                os.chown(path, -1, group)
                rights = stat.S_IMODE(path.stat().st_mode)
                of_owner = rights & stat.S_IRWXU
                path.chmod((rights & ~RIGHTS_OF_OTHERS) | of_owner >> 3)
    except PermissionError as exc:
        text = f"GYRE_HOME_GROUP: {exc.filename} cannot be given to the group"
        raise SettingsError(f"{text}: is the owner a member of it?") from exc
