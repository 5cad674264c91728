"""Settings: read once at the entrance, frozen, passed down."""

from __future__ import annotations

import os
from datetime import date  # noqa: TC003  (pydantic reads the annotations at run time)
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AliasChoices, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from stack.errors import SettingsError
from stack.preflight import ENV_FILE

PROJECT = Path(__file__).resolve().parents[1]
LOOPBACK = "127.0.0.1"


class Settings(BaseSettings):
    """Where things are. Every field is the environment variable `GYRE_<FIELD>`.

    Those that always belong to one home can be lines of its `gyre.env`: `GYRE_MLFLOW_PORT=5001`.

    Ports are those the stack's own processes listen on (loopback only). An address given for
    Redis, MLflow or the (Postgres) database means that part is somebody else's: used, not started.
    """

    model_config = SettingsConfigDict(
        env_prefix="GYRE_", env_nested_delimiter="__", frozen=True, extra="forbid"
    )

    home: Path = PROJECT / ".gyre"
    serving_port: int = Field(8000, ge=1, le=65535)
    console_port: int = Field(8001, ge=1, le=65535)
    mlflow_port: int = Field(5000, ge=1, le=65535)
    airflow_port: int = Field(8080, ge=1, le=65535)
    redis_port: int = Field(6379, ge=1, le=65535)
    redis_url: str | None = Field(
        None, validation_alias=AliasChoices("GYRE_REDIS_URL", "REDIS_URL")
    )
    mlflow_url: str | None = None
    database_url: str | None = None
    artifacts_url: str | None = None
    sources: dict[str, str] = Field(default_factory=dict)
    """Where a dataset's rows come from (`GYRE_SOURCES__ORDERS`): a parquet or CSV file, a folder
    of them, a glob, or an Ibis address followed by `#table`. Default: the file in `data/`."""
    demo_start: date | None = None
    """The day (UTC) that the shipped orders are dated for: 120 days of them lie ahead of it.
    Default: the day of the first ingest. Kept in GYRE_HOME from then on."""
    replay: date | None = None
    """In a home where history is replayed (`gyre replay`): the day (UTC) it ends. Promotions then
    are of the moment they are made as of. Only a line of the home's own `gyre.env`."""
    engine: Literal["duckdb", "spark"] = "duckdb"
    """What computes features, labels and training frames; Spark is installed by `make spark`."""
    spark_master: str = "local[*]"
    alert_urls: str = ""
    """Apprise addresses (Slack, mail, a webhook …), separated by blanks; none: a log file."""
    change_live_features: bool = False
    """Let ingest and `feast apply` change the feature values that a version in a role is served."""
    default_model: str | None = None
    """The model that serving answers with where a route names none, as `/predict` does. Default:
    the only one there is; with several, none."""
    keep_days: dict[str, int] = Field(default_factory=dict, validate_default=True)
    """Days after which `gyre maintain` deletes rows of a table (`GYRE_KEEP_DAYS__PREDICTIONS`)."""
    serving_workers: int = Field(1, ge=1, le=64)
    """Processes that answer predictions; each takes a core and at most 150 MB."""
    serving_tokens_file: Path | None = None
    """One bearer token a line (`name:token` or `token`; `#` for comments), read again when it
    changes: serving answers nobody without one, but for probes and /metrics. Default: everybody."""

    @field_validator("keep_days")
    @classmethod
    def _of_each(cls, given: dict[str, int]) -> dict[str, int]:
        known = {"predictions": 400, "outcomes": 400, "scores": 400}
        if given.keys() - known or any(days < 1 for days in given.values()):
            raise ValueError(f"expected whole days, at least 1, of {' or '.join(known)}")
        return known | given

    @field_validator("serving_tokens_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError("expected an absolute path: processes have other working directories")
        return value

    @field_validator("database_url")
    @classmethod
    def _postgres(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("postgresql"):
            raise ValueError("expected a postgresql:// address; one SQLite file for all deadlocks")
        return value

    @property
    def redis_address(self) -> str:
        return self.redis_url or f"redis://{LOOPBACK}:{self.redis_port}/0"

    @property
    def mlflow_address(self) -> str:
        return self.mlflow_url or f"http://{LOOPBACK}:{self.mlflow_port}"

    @property
    def airflow_address(self) -> str:
        return f"http://{LOOPBACK}:{self.airflow_port}"

    @property
    def serving_address(self) -> str:
        return f"http://{LOOPBACK}:{self.serving_port}"

    @property
    def console_address(self) -> str:
        return f"http://{LOOPBACK}:{self.console_port}"

    @property
    def ledger_address(self) -> str:
        """SQLAlchemy address of the promotion ledger."""
        return self.database_url or f"sqlite:///{self.home / 'ledger.db'}"

    @property
    def data(self) -> Path:
        """Delta tables: everything that happened. All else below `home` can be rebuilt."""
        return self.home / "data"

    @property
    def features(self) -> Path:
        return self.home / "features"

    @property
    def data_docs(self) -> Path:
        """Great Expectations' pages on the newest batch of each dataset and training frame."""
        return self.home / "reports" / "data_docs"

    @property
    def feast_offline_store(self) -> dict[str, str]:
        """`offline_store` in feature_store.yaml."""
        room = "feature_repo.extensions"
        if self.engine == "duckdb":
            return {"type": f"{room}.offline.AsofOfflineStore"}
        return {"type": f"{room}.spark.SparkOfflineStore", "master": self.spark_master}

    def feast_connection(self, deadline: float) -> str:
        """`redis_address` in the form of Feast's Redis store; every call ends in `deadline` s."""
        url = urlsplit(self.redis_address)
        parts = [f"{url.hostname}:{url.port or 6379}", f"db={url.path.lstrip('/') or 0}"]
        parts += [f"socket_timeout={deadline}", f"socket_connect_timeout={deadline}"]
        if url.scheme == "rediss":
            parts.append("ssl=true")
        if url.username:
            parts.append(f"username={unquote(url.username)}")
        if url.password:
            parts.append(f"password={unquote(url.password)}")
        return ",".join(parts)


def load_settings(**overrides: Any) -> Settings:
    """Read the environment, then the home's `gyre.env`, once.

    Raises:
        SettingsError: one line naming the variable and what was expected.

    """
    if any(name.upper() == "GYRE_REPLAY" for name in os.environ):  # it would pass for any home's
        raise SettingsError(
            f"GYRE_REPLAY: unset it; it belongs in the {ENV_FILE} of a replay's own home alone"
        )
    try:
        home = Settings(**overrides).home.expanduser().resolve()
        return Settings(_env_file=home / ENV_FILE, **(overrides | {"home": home}))
    except ValidationError as exc:
        first = exc.errors()[0]
        name = "GYRE_" + "__".join(str(part) for part in first["loc"]).upper().removeprefix("GYRE_")
        raise SettingsError(f"{name}: {first['msg']} (found {first['input']!r})") from exc
