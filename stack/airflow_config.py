"""GYRE_HOME/airflow/airflow.cfg: options of a stack's Airflow, for its processes and for shells."""

import os
from configparser import ConfigParser
from io import StringIO

from core.files import replace_file
from core.project import CLONE
from core.settings import Settings
from stack.environment import LOGIN, load_secrets

CONFIG_HEAD = """\
# Written by Gyre whenever the stack starts: edits are lost. To change an option, set
# AIRFLOW__SECTION__KEY before `gyre up`. The file holds secrets.

"""
OPTIONS = {
    "core": {
        "load_examples": "False",
        "executor": "LocalExecutor",
        "parallelism": "2",
        "dags_folder": str(CLONE / "dags"),
        "plugins_folder": str(CLONE / "dags" / "plugins"),
        "dags_are_paused_at_creation": "False",
        "min_serialized_dag_update_interval": "1",
        "auth_manager": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager."
        "SimpleAuthManager",
    },
    "api": {"workers": "1"},
    "workers": {"min_heartbeat_interval": "1", "execution_api_timeout": "30"},
    "scheduler": {
        "scheduler_idle_sleep_time": "0.5",
        "orphaned_tasks_check_interval": "30",
    },
    "dag_processor": {
        "parsing_processes": "1",
        # It bounds callbacks too, which import MLflow: on a busy machine 50 seconds are too few.
        "dag_file_processor_timeout": "180",
        "refresh_interval": "5",
        "bundle_refresh_check_interval": "1",
        "min_file_process_interval": "600",
    },
    "logging": {"namespace_levels": "airflow.models.dag=WARNING"},
    "usage_data_collection": {"enabled": "False"},
}
"""Options of every stack's Airflow, by section."""


def airflow_config(settings: Settings) -> str:
    """Return the content of the file: these options on top of the file that AIRFLOW_CONFIG names.

    An Airflow chart sets AIRFLOW_CONFIG. Variables AIRFLOW__* win over the file, except those of
    database, host and port, which are settings of Gyre (`process_environment`).

    Raises:
        StackError: The stack was never started: it has no secrets.

    """
    folder = settings.home / "airflow"
    secrets = load_secrets(settings)
    database = settings.schema_url("airflow")
    roles = settings.airflow_roles | {LOGIN: "admin"}
    users = [f"{name}:{role}" for name, role in roles.items()]
    options_of_stack = {
        "core": {
            "fernet_key": secrets["fernet"],
            "simple_auth_manager_users": ",".join(users),
            "simple_auth_manager_passwords_file": str(folder / "passwords.json"),
            "execution_api_server_url": f"{settings.airflow_address}/execution/",
        },
        "api": {
            "host": settings.airflow_host,
            "port": str(settings.airflow_port),
            "base_url": settings.link("airflow"),
            "secret_key": secrets["api"],
        },
        "api_auth": {"jwt_secret": secrets["jwt"]},
        "database": {
            "sql_alchemy_conn": database
            or f"sqlite:///{folder / 'airflow.db'}?timeout=30",
        },
    }
    if database:
        options_of_stack["database"]["sql_alchemy_conn_async"] = database
    config = ConfigParser(interpolation=None)
    config.read(os.environ.get("AIRFLOW_CONFIG", ""))
    for section, values in (*OPTIONS.items(), *options_of_stack.items()):
        # Airflow's reader takes a single % for a reference.
        escaped = {key: text.replace("%", "%%") for key, text in values.items()}
        config.read_dict({section: escaped})
    text = StringIO()
    config.write(text)
    return CONFIG_HEAD + text.getvalue()


def write_airflow_config(settings: Settings) -> None:
    """Write the file for its owner alone."""
    content = airflow_config(settings)
    replace_file(settings.home / "airflow" / "airflow.cfg", content, mode=0o600)
