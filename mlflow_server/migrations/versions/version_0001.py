"""The tables of release 0.1.0. Those that homes made before there were revisions stay."""

import sqlalchemy as sql
from alembic import op

revision = "0001"
down_revision = None


def texts(*names: str) -> list[sql.Column[str]]:
    return [sql.Column(name, sql.Text, nullable=False) for name in names]


def upgrade() -> None:
    op.create_table(
        "ledger",
        sql.Column("model", sql.String(64), primary_key=True),
        sql.Column("sequence", sql.Integer, primary_key=True, autoincrement=False),
        sql.Column("role", sql.String(16), nullable=False),
        sql.Column("percent", sql.Integer, nullable=False),
        *(sql.Column(name, sql.String(16)) for name in ("from", "to")),
        *texts("who", "why"),
        sql.Column("evidence", sql.Text),
        sql.Column("time", sql.String(32), nullable=False),
        sql.Column("applied_at", sql.String(32)),
        if_not_exists=True,
    )
    create_records()


def create_records() -> None:
    op.create_table(
        "decisions",
        sql.Column("sequence", sql.Integer, primary_key=True),
        sql.Column("model", sql.String(64), nullable=False),
        *texts("version", "as_of", "verdict", "action", "rule"),
        *texts("reason", "cause", "inputs", "figures"),
        sql.Column("counted", sql.Text),
        if_not_exists=True,
    )
    op.create_table(
        "alerts",
        sql.Column("sequence", sql.Integer, primary_key=True),
        sql.Column("model", sql.String(64), nullable=False),
        *texts("cause", "message", "first", "last"),
        sql.Column("details", sql.Text),
        sql.Column("count", sql.Integer, nullable=False),
        sql.Column("delivered", sql.Boolean, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "windows",
        sql.Column("model", sql.String(64), primary_key=True),
        sql.Column("as_of", sql.String(32), primary_key=True),
        sql.Column("details", sql.Text, nullable=False),
        if_not_exists=True,
    )
    for table in ("decisions", "alerts"):
        op.create_index(f"ix_{table}_model", table, ["model"], if_not_exists=True)
