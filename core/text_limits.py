"""The longest texts that other tools keep. PostgreSQL refuses a longer one, SQLite keeps it."""

RUN_NAME = 250
"""Of MLflow, as the next two."""
RUN_TAG = 8_000
DESCRIPTION = 5_000
"""Of a registered model, and of a version."""
AIRFLOW_NOTE = 1_000
MARK = " … (cut)"


def cut(text: str, longest: int) -> str:
    """Return the text; of a longer one its beginning, with a mark at the end."""
    return text if len(text) <= longest else text[: longest - len(MARK)] + MARK
