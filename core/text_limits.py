"""Longest texts that other tools store. PostgreSQL refuses a longer one, SQLite keeps it."""

RUN_NAME = 250
"""Characters of the name of a run in MLflow."""
RUN_TAG = 8_000
"""Characters of a tag of a run in MLflow."""
DESCRIPTION = 5_000
"""Characters of the description of a model or a version in MLflow."""
AIRFLOW_NOTE = 1_000
MARK = " … (cut)"


def cut(text: str, longest: int) -> str:
    """Return the text; if it is longer, its beginning with a mark at the end."""
    return text if len(text) <= longest else text[: longest - len(MARK)] + MARK
