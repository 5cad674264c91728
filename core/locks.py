"""Locks, by which a table, an ingest or a ledger has one writer at a time."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from filelock import FileLock, Timeout

from core.access.private_home import make_home
from core.errors import DataError
from core.settings import Settings

INGEST_LOCK = "ingest/{}"
"""Lock of a dataset by its name: one ingest at a time reads the dataset's source."""
ONLINE_LOCK = "online/{}"
"""Lock of a dataset by its name: one process at a time computes and writes its online values."""
LOCK_SECONDS = 60.0
"""How long a writer waits for another by default."""
POLL_SECONDS = 0.005
"""How often a waiting writer asks for a file's lock: events wait for it."""
CONNECT_SECONDS = 5
KEEPALIVES = (
    "SET tcp_keepalives_idle = 15; SET tcp_keepalives_interval = 5;"
    " SET tcp_keepalives_count = 3"
)
"""PostgreSQL frees the lock of a host that is lost after half a minute."""
_THREAD = threading.local()


@contextmanager
def one_writer(
    settings: Settings,
    name: str,
    seconds: float = LOCK_SECONDS,
    address: str | None = None,
) -> Iterator[None]:
    """Hold the lock `name` until the block ends; a thread that holds it may ask again.

    With PostgreSQL the lock excludes the writers of all hosts. Without, it is a file below
    GYRE_HOME/data, and excludes the writers of this host.

    Args:
        settings: Settings of the installation.
        name: Name of the table or the work, such as `raw/orders`.
        seconds: How long to wait while another writer holds the lock.
        address: Address of another PostgreSQL than GYRE_DATABASE_URL.

    Raises:
        DataError: Another writer held the lock for `seconds`, PostgreSQL does not answer, or the
            file cannot be written.

    """
    busy = f"{name}: another writer held it for {seconds:.0f} s"
    address = address or settings.database_url
    if address:
        with _database_lock(address, name, seconds, busy):
            yield
        return
    path = settings.home / "data" / f"{name}.lock"
    try:
        make_home(settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, is_singleton=True)
        acquired_lock = lock.acquire(timeout=seconds, poll_interval=POLL_SECONDS)
    except Timeout as exc:
        raise DataError(busy) from exc
    except OSError as exc:
        raise DataError(f"{path}: the lock cannot be made: {exc.strerror}") from exc
    with acquired_lock:
        yield


@contextmanager
def _database_lock(
    address: str, name: str, seconds: float, busy: str
) -> Iterator[None]:
    """Hold a lock of PostgreSQL, which frees it once this process or its host is gone."""
    import psycopg  # noqa: PLC0415  (only teams need it)

    held_names: set[str] = _THREAD.__dict__.setdefault("held_names", set())
    if name in held_names:
        yield
        return
    url = f"postgresql://{address.partition('://')[2]}"
    with ExitStack() as opened:
        try:
            connection = psycopg.connect(
                url, autocommit=True, connect_timeout=CONNECT_SECONDS
            )
            opened.enter_context(closing(connection))
            connection.execute(f"SET lock_timeout = '{seconds}s'; {KEEPALIVES}")
            connection.execute(
                "SELECT pg_advisory_lock(hashtext(%s))", [f"gyre.data.{name}"]
            )
        except psycopg.errors.LockNotAvailable as exc:
            raise DataError(busy) from exc
        except psycopg.Error as exc:
            line = str(exc).splitlines()[0]
            raise DataError(f"{name}: PostgreSQL refuses the lock: {line}") from exc
        held_names.add(name)
        try:
            yield
        finally:
            held_names.discard(name)
