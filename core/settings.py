"""Settings: read once at the entrance, frozen, passed down."""

import os
import re
import socket
from contextlib import suppress
from datetime import date
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from random import SystemRandom
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    PositiveInt,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from upath import UPath

from core.errors import SettingsError
from core.files import location
from core.project import (
    CLONE,
    ENV_FILE,
    PROJECT,
    SHIPPED,
    STORE,
    is_own_store,
    is_project,
)
from core.schedule import Schedule

LOOPBACK = "127.0.0.1"
PORTS = ("serving", "console", "mlflow", "airflow", "redis")
"""Programs of the stack that listen on a port: the setting `<name>_port`."""
# Linux takes ports of outgoing connections from 32768 on: such a port may be taken before
# the program that it was chosen for listens on it.
FREE_PORTS = range(15_000, 32_768)
Page = Literal["serving", "console", "mlflow", "airflow"]
"""A program that people look at."""
Part = Literal["airflow", "mlflow", "redis"]
"""A program of the stack in whose place a team may have its own."""
SHARED = (
    "database_url",
    "ledger_url",
    "data_url",
    "artifacts_url",
    "redis_url",
    "mlflow_url",
    "airflow_url",
    "airflow_user",
    "airflow_password",
    "airflow_token",
    "serving_url",
    "online_store",
    "feast_repo",
    "events_url",
    "predictions_topic",
    "decisions_topic",
)
"""Settings that a temporary installation does not share with the one that makes it."""
SCHEMAS = ("airflow", "feast", "gyre", "mlflow")
"""Schemas of the database, where there is one."""
AIRFLOW_USERS = re.compile(r"([\w.@+-]+:(viewer|user|op|admin)(,(?=.)|$))*")
LAYOUT = "8"
"""Layout of stored data. A home, a database and a backup name theirs; Gyre refuses another."""
TOOLS = ("aws_", "google_", "azure_", "pyiceberg_", "pg", "mlflow_tracking_")
"""Beginnings of the names of files of GYRE_SECRETS_DIR that are variables of other tools."""
KAFKA_OWN = {
    "acks",
    "auto_offset_reset",
    "bootstrap_servers",
    "enable_auto_commit",
    "enable_idempotence",
    "group_id",
    "group_instance_id",
    "isolation_level",
    "message_timeout_ms",
    "transactional_id",
}
"""Settings of librdkafka that GYRE_KAFKA may not have."""
KEEP_DAYS = {"predictions": 400, "outcomes": 400, "scores": 400}
BUCKETS = ("s3", "gs", "az")
SECRETS = frozenset(
    {
        "airflow_password",
        "airflow_token",
        "alert_urls",
        "database_url",
        "kafka",
        "ledger_url",
        "online_store",
        "redis_url",
        "schema_registry",
        "sources",
    }
)
"""Settings that may hold a password or a token: neither a message nor `gyre config` shows them."""
SECRET_WHILE_WRONG = frozenset({"airflow_users", "links"})
"""Settings that may hold a password as long as they are not valid, as may addresses (`…_url`)."""
UNREADABLE = (
    "expected an address with a number as its port and no @ behind its host; in a user or a password "
    "write %2F for /, %3F for ?, %23 for #, %40 for @, %5B for [ and %5D for ]"
)
"""What is wrong with an address that cannot be split. No piece of it is shown: where its password
ends, nobody knows."""
CLOUD_LOGIN = "set the variables of the cloud, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
LOGINS = {
    "mlflow_url": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "airflow_url": "set GYRE_AIRFLOW_USER and GYRE_AIRFLOW_PASSWORD, or GYRE_AIRFLOW_TOKEN",
    "serving_url": "write its token into the file of GYRE_SERVING_TOKENS_FILE",
    "links": "people log in in their browser",
    "data_url": CLOUD_LOGIN,
    "artifacts_url": CLOUD_LOGIN,
}
"""Where the login belongs that an address may not have, as messages show these addresses."""


def _split_url(address: str) -> SplitResult:
    """Split an address that every client reads alike.

    Raises:
        ValueError: A port is no number, or a login has signs that end it for some clients. The text
            has no piece of the address.

    """
    try:
        url = urlsplit(address)
        _ = url.port  # raises ValueError where it is no number
    except ValueError:
        raise ValueError(UNREADABLE) from None
    behind_host = address.partition("://")[2].removeprefix(url.netloc)
    # The name of an object may have an @, and a bucket has no port.
    may_have_sign = url.scheme in BUCKETS and ":" not in url.netloc
    if url.netloc.count("@") > 1 or ("@" in behind_host and not may_have_sign):
        raise ValueError(UNREADABLE)
    return url


def _checked_url(schemes: tuple[str, ...], address: str) -> str:
    """Return the address of a server or a bucket without a slash at its end.

    Raises:
        ValueError: The scheme is another one, a host or bucket is missing, or it cannot be read.

    """
    url = _split_url(address)
    if url.scheme.partition("+")[0] not in schemes or not url.hostname:
        raise ValueError(f"expected {'://…, '.join(schemes)}://…")
    return address.rstrip("/")


def checked_zone(name: str) -> str:
    """Return the name of a time zone.

    Raises:
        ValueError: There is none of that name.

    """
    try:
        return ZoneInfo(name).key
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise ValueError(
            f"expected a time zone such as Europe/Berlin, found {name}"
        ) from exc


def _checked_addresses(addresses: str) -> str:
    """Return addresses of servers, separated by blanks.

    Raises:
        ValueError: One of them is none.

    """
    checked = [
        _checked_url(("http", "https"), address) for address in addresses.split()
    ]
    return " ".join(checked)


def _checked_brokers(address: str) -> str:
    """Return the address of a Kafka: `kafka://HOST:PORT`, further brokers behind commas.

    Raises:
        ValueError: A part is no host and port.

    """
    if not re.fullmatch(r"kafka://[\w.\-\[\]:]+:\d+(,[\w.\-\[\]:]+:\d+)*", address):
        raise ValueError("expected kafka://HOST:PORT, further brokers behind commas")
    return address


def _checked_host_name(name: str) -> str:
    """Return the name of a host in small letters.

    Raises:
        ValueError: It is none, or has a port.

    """
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name, re.ASCII):
        raise ValueError(f"expected the name of a host without a port, found {name}")
    return name.lower()


ServerUrl = Annotated[str, AfterValidator(partial(_checked_url, ("http", "https")))]
ServerUrls = Annotated[str, AfterValidator(_checked_addresses)]
RedisUrl = Annotated[str, AfterValidator(partial(_checked_url, ("redis", "rediss")))]
KafkaUrl = Annotated[str, AfterValidator(_checked_brokers)]
BucketUrl = Annotated[str, AfterValidator(partial(_checked_url, BUCKETS))]
DatabaseUrl = Annotated[
    str, AfterValidator(partial(_checked_url, ("postgresql", "postgres")))
]
Port = Annotated[int, Field(ge=1, le=65535)]
Parts = Annotated[
    frozenset[Part],
    NoDecode,
    BeforeValidator(lambda names: names.split() if isinstance(names, str) else names),
]
HostNames = Annotated[
    frozenset[Annotated[str, AfterValidator(_checked_host_name)]],
    NoDecode,
    BeforeValidator(lambda names: names.split() if isinstance(names, str) else names),
]
ZoneName = Annotated[str, AfterValidator(checked_zone)]
Host = Annotated[str, AfterValidator(lambda text: str(ip_address(text)))]


class Settings(BaseSettings):
    """Settings of an installation. Every field is the environment variable `GYRE_<FIELD>`.

    Settings that always belong to one home can be lines of its `gyre.env`: `GYRE_MLFLOW_PORT=5001`.
    `python -m docs.generate` makes docs/reference/settings.md of the texts below the fields.
    """

    model_config = SettingsConfigDict(
        env_prefix="GYRE_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    project: Path = PROJECT
    """The folder of a team's own models, datasets, expectations and Python packages; `gyre init
    DIR` writes one. Default: the project that the working directory is in, else the clone. It is
    read from the environment alone, as `gyre.env` lies below it."""
    home: Path = PROJECT / ".gyre"
    """The state directory of one installation: data, databases, files, logs. Default: `.gyre` in
    the project."""
    home_group: str | None = None
    """A Unix group that may work in GYRE_HOME beside its owner, such as that of the user whom [your
    Airflow](../how-to/your-airflow.md) runs tasks as. Default: the owner alone. Write it into
    `gyre.env`, as each process follows it."""
    serving_port: Port = 8000
    """Port of serving."""
    console_port: Port = 8001
    """Port of the console."""
    mlflow_port: Port = 5000
    """Port of MLflow."""
    airflow_port: Port = 8080
    """Port of Airflow's API and pages."""
    redis_port: Port = 6379
    """Port of Redis. Its password is in `redis.conf` of GYRE_HOME."""
    redis_url: RedisUrl | None = Field(
        None, validation_alias=AliasChoices("GYRE_REDIS_URL", "REDIS_URL")
    )
    """Address of a Redis from 6.2 on, or a Valkey, that Gyre uses and does not start: a name or an
    IPv4 address. `REDIS_URL` is read too."""
    feast_repo: Path | None = Field(None, validate_default=True)
    """A team's Feast repository, whose `feature_store.yaml` Gyre reads as it stands ([you have
    Feast](../how-to/your-feast.md)). A relative path begins at the project. Default:
    `feature_repo` of the project, unless its `feature_store.yaml` is Gyre's."""
    online_store: dict[str, str] | None = None
    """Another online store of Feast's in place of Redis, as `online_store` of feature_store.yaml
    has it: `GYRE_ONLINE_STORE__TYPE=dynamodb`, `GYRE_ONLINE_STORE__REGION=…`. Events stay in Redis.
    """
    events_url: Annotated[
        KafkaUrl | None, BeforeValidator(lambda address: address or None)
    ] = None
    """A Kafka that has the [events](../events.md) in place of Redis: `kafka://HOST:PORT`, further
    brokers behind commas."""
    events_prefix: str = Field("gyre.", pattern=r"^[\w.-]+$")
    """Beginning of the names of Gyre's own topics, groups and transactions in that Kafka. Several
    installations on one Kafka need one each."""
    kafka: dict[str, str] = Field(default_factory=dict)
    """Settings of librdkafka for every client, with `_` for each dot of a name:
    `GYRE_KAFKA__SECURITY_PROTOCOL=SASL_SSL`, `__SASL_MECHANISM`, `__SASL_USERNAME`,
    `__SSL_CA_LOCATION`. A file `gyre_kafka` of GYRE_SECRETS_DIR has the secret ones, as JSON:
    `{"sasl_password": "…"}`."""
    schema_registry: dict[str, str] = Field(default_factory=dict)
    """Settings of Confluent's client for the schema registry of a topic's records, likewise:
    `GYRE_SCHEMA_REGISTRY__URL=http://…`; `{"basic_auth_user_info": "USER:PASSWORD"}` in a file
    `gyre_schema_registry`."""
    predictions_topic: str = ""
    """Topic of GYRE_EVENTS_URL that gets the rows of the prediction log
    ([how](../events.md#predictions-and-decisions-on-a-topic)). Default: none does."""
    decisions_topic: str = ""
    """Topic of GYRE_EVENTS_URL that gets the decisions of monitoring. Default: none does."""
    mlflow_url: ServerUrl | None = None
    """Address of an MLflow server that Gyre uses and does not start. MLflow's own variables have the
    [login](../how-to/your-mlflow.md), in the environment or as files of GYRE_SECRETS_DIR
    (`mlflow_tracking_password`)."""
    mlflow_prefix: str = Field("", pattern=r"^[\w.-]*$")
    """Beginning of the names that models and experiments of this installation have in MLflow, so
    that several installations share one MLflow, each with a prefix of its own: `team-a.`."""
    airflow_url: ServerUrl | None = None
    """Address of an Airflow that Gyre uses and does not start ([you have
    Airflow](../how-to/your-airflow.md))."""
    airflow_user: str | None = None
    """User of the Airflow of GYRE_AIRFLOW_URL. Default: `admin`."""
    airflow_password: SecretStr | None = None
    """Password of that user. Default: that of Gyre's own Airflow."""
    airflow_token: SecretStr | None = None
    """Token of the Airflow of GYRE_AIRFLOW_URL, in place of user and password. Where both are given,
    a token that Airflow refuses is asked for anew."""
    without: Parts = frozenset()
    """Programs that `gyre up` does not start, separated by blanks: `airflow`, `mlflow`, `redis`. MLflow
    and Redis are expected at their address. Without Airflow, `gyre up` itself ingests and trains, and
    later nothing starts by itself. A program with an address of its own (GYRE_MLFLOW_URL …) is not
    started anyway."""
    serving_url: ServerUrls | None = None
    """Address of a serving that Gyre uses and does not start. Several addresses, separated by
    blanks, are replicas, which are monitored as one. An http address whose name has several IPv4
    addresses, as a headless Service of Kubernetes has, stands for as many replicas."""
    links: dict[Page, ServerUrl] = Field(default_factory=dict)
    """Addresses by which people reach the programs, as through a proxy: `GYRE_LINKS__MLFLOW`,
    `__AIRFLOW`, `__SERVING`, `__CONSOLE`. Default: the addresses by which the programs reach each
    other."""
    secrets_dir: Path = Path("/run/secrets")
    """A folder where each file is a setting: `gyre_database_url` is read where the environment has no
    GYRE_DATABASE_URL. The own variables of AWS, Google, Azure, pyiceberg and PostgreSQL's clients
    are read there too (`aws_secret_access_key`, `pgpassword`), those of MLflow's login
    (`mlflow_tracking_password`), and the secrets of Airflow: `airflow_fernet`, `airflow_api`,
    `airflow_jwt`, `airflow_password`. Name it in the environment, not in `gyre.env`."""
    database_url: DatabaseUrl | None = None
    """`postgresql://…` in place of SQLite files: each of Airflow, MLflow, Feast's registry and the
    ledger has a schema of its own there. It belongs to one stack. Write it into `gyre.env`, as
    every command needs it."""
    ledger_url: DatabaseUrl | None = None
    """`postgresql://…` of the ledger alone, such as a team's, where another machine promotes into
    the team's MLflow. Default: GYRE_DATABASE_URL."""
    data_url: BucketUrl | None = None
    """`s3://bucket/prefix` in place of GYRE_HOME for Delta tables and reports, or `gs://…` (Google
    Cloud Storage), or `az://container/prefix` (Azure); each host keeps copies. Several hosts need
    GYRE_DATABASE_URL, which has the locks of writers, and GYRE_HOME at the same path. The cloud's own
    variables name endpoint and keys: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_DEFAULT_REGION; GOOGLE_SERVICE_ACCOUNT; AZURE_STORAGE_ACCOUNT_NAME,
    AZURE_STORAGE_ACCOUNT_KEY."""
    artifacts_url: str | None = None
    """`s3://bucket/prefix` in place of GYRE_HOME for the files that MLflow keeps."""
    sources: dict[str, str] = Field(default_factory=dict)
    """[Source](../how-to/sources.md) of a dataset's rows (`GYRE_SOURCES__ORDERS`): files (parquet, CSV,
    JSON lines), a folder of them or a glob, on disk or in a bucket, a Delta table, an Iceberg table, or
    a database's address followed by `#table`. Default: the file in `data/`."""
    time_zones: dict[str, ZoneName] = Field(default_factory=dict)
    """Time zone of a source whose times have none (`GYRE_TIME_ZONES__ORDERS=Europe/Berlin`). Default:
    such times are refused."""
    demo_start: date | None = None
    """The day (UTC) that the shipped orders are dated for: 120 days of them lie ahead of it.
    Default: the day of the first ingest. Kept in GYRE_HOME from then on."""
    ingest_schedule: Schedule = "*/20 * * * *"
    """When Airflow runs the DAG `ingest` (UTC): a cron expression, or a name such as @hourly. It
    holds for the whole installation: the skew check takes from it how late features may be. If it
    is rarer, set `freshness_hours` of the specs too."""
    engine: Literal["duckdb", "spark"] = "duckdb"
    """The engine that computes feature views, labels and training frames; [Spark](../how-to/spark.md)
    is an extra."""
    spark_master: str = "local[*]"
    """The Spark master of `GYRE_ENGINE=spark`, such as `spark://10.0.0.1:7077`. A cluster
    needs GYRE_DATA_URL."""
    alert_urls: str = ""
    """Apprise addresses (Slack, PagerDuty, mail, a webhook …), separated by blanks. Default: the
    file `logs/alerts.log` in GYRE_HOME."""
    adopt_pickles: bool = False
    """Allows a process of its own to open a model that can run any code: a pickle in `gyre adopt`, a
    model of MLflow's pyfunc beside a worker, too. Set it for models that you trust."""
    change_live_features: bool = False
    """Allows ingest to change the feature values that a version in a role is served. It is meant for
    a single command."""
    default_model: str | None = None
    """The model of routes that name none, such as `/predict`. Default: the only model there is; with
    several models there is no default, and `/predict` answers 404."""
    keep_days: Annotated[
        dict[Literal["predictions", "outcomes", "scores"], PositiveInt],
        BeforeValidator(lambda days: KEEP_DAYS | days),
    ] = Field(default_factory=dict, validate_default=True)
    """Days after which `gyre maintain` deletes rows of a table (`GYRE_KEEP_DAYS__PREDICTIONS`,
    `__OUTCOMES`, `__SCORES`). Default: 400 each."""
    serving_workers: int = Field(1, ge=1, le=64)
    """Processes that answer predictions; each takes a core and 150 MB, and up to 200 MB after large
    bodies."""
    serving_drain_seconds: int = Field(0, ge=0, le=15)
    """Seconds from SIGTERM on in which serving still answers, and asks clients to connect anew:
    until whoever balances requests names it no more. After them it takes up to 14 s to end."""
    serving_tokens_file: Path | None = None
    """Absolute path of a file with one bearer token a line (`NAME:TOKEN` or `TOKEN`; `#` for
    comments), read again when it changes. Only probes, `/metrics` and the page `/docs` then answer
    without one. Default: everybody is answered."""
    behind_proxy: bool = False
    """States that people reach MLflow and the console only through a proxy that asks for a login, as
    both have none; and serving only through a proxy that sets `X-Request-ID` to a value of its own,
    from which the `request_id` of a prediction is made."""
    host: Host = LOOPBACK
    """IP address that serving listens on (`0.0.0.0`: all). An address that other hosts reach needs
    GYRE_SERVING_TOKENS_FILE."""
    mlflow_host: Host = LOOPBACK
    """IP address that MLflow listens on. An address that other hosts reach needs GYRE_BEHIND_PROXY."""
    console_host: Host = LOOPBACK
    """IP address that the console listens on. An address that other hosts reach needs
    GYRE_BEHIND_PROXY."""
    airflow_host: Host = LOOPBACK
    """IP address that Airflow's API and pages listen on; they have a login."""
    allowed_hosts: HostNames = frozenset()
    """Further names by which clients reach serving, MLflow, the console and Airflow, separated by
    blanks: `gyre.example.com serving`. They answer IP addresses, `localhost`, and the names in
    GYRE_LINKS__… and GYRE_…_URL; a request for another name is refused
    ([why](../security.md#pages-of-other-sites))."""
    airflow_users: str = ""
    """People who log in to Airflow, with their roles, such as `ann:admin,bob:viewer`; a role is
    `viewer`, `user` (starts and approves runs), `op` or `admin`. Their passwords are in
    `airflow/passwords.json` of GYRE_HOME. `admin` is Gyre's own user."""

    @field_validator("project")
    @classmethod
    def _whole_project(cls, value: Path) -> Path:
        if value != PROJECT and "GYRE_PROJECT" not in os.environ:
            raise ValueError(
                f"set it in the environment, not in {ENV_FILE}: there it is {PROJECT}"
            )
        if PROJECT != CLONE and not is_project(PROJECT):
            part = STORE if (PROJECT / "models").is_dir() else "models"
            text = f"expected a project, and {PROJECT} has no {part}"
            raise ValueError(
                f"{text}; make one: gyre init DIR, or name your Feast repository: GYRE_FEAST_REPO"
            )
        return PROJECT

    @field_validator("feast_repo")
    @classmethod
    def _team_repository(cls, value: Path | None) -> Path | None:
        repository = (PROJECT / (value or STORE.parent).expanduser()).resolve()
        file = repository / STORE.name
        if value is None:
            return None if is_own_store(file) else repository
        if not file.is_file():
            raise ValueError(f"expected a folder with {STORE.name}, found no {file}")
        return repository

    @field_validator("kafka")
    @classmethod
    def _not_our_own(cls, value: dict[str, str]) -> dict[str, str]:
        taken = ", ".join(sorted(KAFKA_OWN.intersection(value)))
        if taken:
            raise ValueError(
                f"Gyre's promises rest on its own values of {taken}: leave them out"
            )
        return value

    @field_validator("predictions_topic", "decisions_topic")
    @classmethod
    def _with_kafka(cls, value: str, info: ValidationInfo) -> str:
        if value and not info.data.get("events_url"):
            raise ValueError("expected GYRE_EVENTS_URL too, the address of its Kafka")
        return value

    @field_validator("serving_tokens_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError(
                "expected an absolute path: processes have other working directories"
            )
        return value

    @field_validator("airflow_users")
    @classmethod
    def _with_roles(cls, value: str) -> str:
        if not AIRFLOW_USERS.fullmatch(value):
            raise ValueError(
                "expected NAME:ROLE,NAME:ROLE with a role of viewer, user, op or admin"
            )
        return value

    @field_validator("host", "mlflow_host", "console_host")
    @classmethod
    def _guarded(cls, value: str, info: ValidationInfo) -> str:
        guard = "serving_tokens_file" if info.field_name == "host" else "behind_proxy"
        if not ip_address(value).is_loopback and not info.data.get(guard):
            text = "other hosts would reach it without a login"
            raise ValueError(f"{text}: set GYRE_{guard.upper()} too")
        return value

    @field_validator(*LOGINS)
    @classmethod
    def _without_login(
        cls, value: str | dict[Page, str] | None, info: ValidationInfo
    ) -> str | dict[Page, str] | None:
        field = str(info.field_name)
        texts = value.values() if isinstance(value, dict) else [value or ""]
        addresses = " ".join(texts).split()
        is_bucket = addresses and addresses[0].partition("://")[0] in BUCKETS
        if field == "artifacts_url" and not is_bucket:
            return value  # such as sftp, whose login has no other place
        for address in addresses:
            url = _split_url(address)
            has_login = "@" in url.netloc or "%40" in url.netloc
            if has_login or url.query or url.fragment:
                text = "expected an address without a login and options, which messages would show"
                raise ValueError(f"{text}: {LOGINS[field]}")
        return value

    @field_validator("redis_url")
    @classmethod
    def _known_to_feast(cls, value: str | None) -> str | None:
        if value and ":" in str(urlsplit(value).hostname):
            raise ValueError(
                "expected a name or an IPv4 address, as Feast's store reads no IPv6"
            )
        return value

    @property
    def redis_config(self) -> Path:
        """File of the stack's own Redis: the line `requirepass PASSWORD`, as `gyre up` makes it."""
        return self.home / "redis.conf"

    @property
    def redis_address(self) -> str:
        """Address of Redis, with its password."""
        if self.redis_url:
            return self.redis_url
        login = ""
        with suppress(FileNotFoundError):  # no `gyre up` yet
            lines = self.redis_config.read_text()
            password = re.search(r"^requirepass (\S+)$", lines, re.MULTILINE)
            login = f":{password[1]}@" if password else ""
        return f"redis://{login}{LOOPBACK}:{self.redis_port}/0"

    @property
    def mlflow_address(self) -> str:
        return self.mlflow_url or self._address("mlflow")

    def mlflow_name(self, name: str) -> str:
        """Return the name that a model or an experiment of this installation has in MLflow."""
        return self.mlflow_prefix + name

    def own_name(self, mlflow_name: str) -> str | None:
        """Return the name here of a model of MLflow; None: it is another installation's."""
        if not mlflow_name.startswith(self.mlflow_prefix):
            return None
        return mlflow_name.removeprefix(self.mlflow_prefix)

    @property
    def airflow_address(self) -> str:
        return self.airflow_url or self._address("airflow")

    @property
    def airflow_roles(self) -> dict[str, str]:
        """Role of each name in `airflow_users`."""
        return dict(re.findall(r"([^:,]+):(\w+)", self.airflow_users))

    @property
    def serving_addresses(self) -> list[str]:
        return (self.serving_url or self._address("serving")).split()

    @property
    def serving_address(self) -> str:
        return self.serving_addresses[0]

    @property
    def console_address(self) -> str:
        return self._address("console")

    @property
    def ledger_address(self) -> str:
        """SQLAlchemy address of the promotion ledger."""
        address = self.ledger_url or self.database_url
        if address:
            return in_schema(address, "gyre")
        return f"sqlite:///{self.home / 'ledger.db'}"

    def beside(self, home: Path, **more: Any) -> "Settings":
        """Return settings for a temporary home, whose databases are files of its own."""
        update: dict[str, Any] = dict.fromkeys(SHARED)
        update["without"] = frozenset()
        update["home"] = home
        # A folder in which its processes find no address of a database.
        update["secrets_dir"] = home / "secrets"
        update["engine"] = "duckdb"  # a cluster does not see this disk
        return self.model_copy(update=update | more)

    def schema_url(self, schema: str, driver: str = "psycopg") -> str | None:
        """SQLAlchemy address of a schema of `database_url`; None where SQLite files are used."""
        return (
            in_schema(self.database_url, schema, driver) if self.database_url else None
        )

    def starts(self, part: str) -> bool:
        """Whether `gyre up` starts a program: it is not left out and has no address elsewhere."""
        return part not in self.without and not getattr(self, f"{part}_url", None)

    def link(self, name: Page) -> str:
        """Return the address by which people reach a program."""
        return self.links.get(name) or str(getattr(self, f"{name}_address"))

    def listens_on(self, name: str) -> str:
        """IP address that a program of PORTS listens on."""
        return str(
            getattr(self, "host" if name == "serving" else f"{name}_host", LOOPBACK)
        )

    def _address(self, name: str) -> str:
        host = self.listens_on(name)
        port = getattr(self, f"{name}_port")
        if ip_address(host).is_unspecified:
            host = "::1" if ":" in host else LOOPBACK
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def data(self) -> UPath:
        """Delta tables: everything that happened. All else below `home` can be rebuilt."""
        return location(self.data_url or str(self.home / "data"))

    @property
    def cache(self) -> Path:
        """Copies of files on S3, which never change, and files of computations under way."""
        return self.home / "cache"

    @property
    def scratch(self) -> UPath:
        """Files of rows that Spark's executors write and this host reads."""
        return self.data / "scratch"

    @property
    def reports(self) -> UPath:
        return (
            self.data / "reports"
            if self.data_url
            else location(str(self.home / "reports"))
        )

    @property
    def data_docs(self) -> UPath:
        """Great Expectations' pages on the newest batch of each dataset and training frame."""
        return self.reports / "data_docs"


def load_settings(**overrides: Any) -> Settings:
    """Read the environment, then the home's `gyre.env`, once.

    Raises:
        SettingsError: The message names the variable or the file, and the expectation.

    """
    if PROJECT == SHIPPED:
        remedy = "go into one, or make one: gyre init DIR && cd DIR"
        raise SettingsError(f"this folder is in no project: {remedy}")
    named_home = overrides.get("home") or os.environ.get("GYRE_HOME")
    home = Path(named_home or PROJECT / ".gyre").expanduser().resolve()
    secrets = Path(os.environ.get("GYRE_SECRETS_DIR", "/run/secrets"))
    is_readable = secrets.is_dir() and os.access(secrets, os.R_OK | os.X_OK)
    sources: dict[str, Any] = {
        "_env_file": home / ENV_FILE,
        "_secrets_dir": secrets if is_readable else None,
    }
    try:
        _read_tool_variables(secrets if is_readable else None)
        settings = Settings(**(sources | overrides | {"home": home}))
    except ValidationError as exc:
        text = _problem(exc, sources["_secrets_dir"])
        # The cause would show keys, in logs of Airflow too.
        raise SettingsError(text) from None
    except (OSError, ValueError) as exc:  # a file, or a variable that is not JSON
        raise SettingsError(f"{home / ENV_FILE} or the environment: {exc}") from exc
    if settings.home_group:
        os.umask(0o007)  # the group may change what this process makes
    return settings


def _read_tool_variables(secrets: Path | None) -> None:
    """Put variables of other tools into the environment: of all libraries boto3 reads files."""
    for file in secrets.iterdir() if secrets else ():
        if file.name.lower().startswith(TOOLS):
            os.environ.setdefault(file.name.upper(), file.read_text().strip())
    if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        os.environ["AWS_ALLOW_HTTP"] = "true"  # the address says it already


def _problem(exc: ValidationError, secrets: Path | None) -> str:
    """Return the first problem with a setting in one line, without a value that may be secret."""
    error = exc.errors()[0]
    if error["type"] == "extra_forbidden":
        return f"{ENV_FILE}: {_unknown(str(error['loc'][0]).upper())}"
    # A key of a dictionary that is no name may be an address.
    parts = [part for part in error["loc"] if str(part).isidentifier()]
    field = str(parts[0]).lower().removeprefix("gyre_")
    name = f"GYRE_{'__'.join([field, *map(str, parts[1:])]).upper()}"
    text = f"{name}: {error['msg'].removeprefix('Value error, ')}"
    secret_files = [file.name.lower() for file in secrets.iterdir()] if secrets else []
    if f"gyre_{field}" in secret_files or field in SECRET_WHILE_WRONG:
        return text
    value = repr(error["input"])
    if field.endswith("_url") or is_secret(field, value) or text.endswith(value):
        return text
    return f"{text} (found {value})"


def is_secret(setting: str, value: str) -> bool:
    """Whether nothing may show a setting: it may hold a password or a token, or its value a login."""
    return setting in SECRETS or "@" in value


def _unknown(name: str) -> str:
    if name.startswith("GYRE_"):
        return f"{name}: expected the name of a setting"
    remedy = "set it in the environment, or as a file of GYRE_SECRETS_DIR"
    return f"{name} is no setting of Gyre: {remedy}"


def in_schema(address: str, schema: str, driver: str = "psycopg") -> str:
    """SQLAlchemy address of a schema of a PostgreSQL database."""
    rest = address.partition("://")[2]
    options = f"options=-csearch_path%3D{schema}"
    return f"postgresql+{driver}://{rest}{'&' if '?' in rest else '?'}{options}"


def free_ports() -> dict[str, int]:
    """Return ports for a stack of its own: all different, and nobody listens on them."""
    candidates = SystemRandom().sample(FREE_PORTS, k=len(FREE_PORTS))
    free = filter(partial(is_free, LOOPBACK), candidates)
    return {f"{name}_port": next(free) for name in PORTS}


def is_free(host: str, port: int) -> bool:
    """Whether a program can listen on a port; port 0 stands for any port of the host."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with suppress(OSError), socket.create_server((host, port), family=family):
        return True
    return False
