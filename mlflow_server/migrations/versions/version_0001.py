"""The tables of release 0.1.0. Those that homes made before there were revisions stay."""

import sqlalchemy as sql
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "ledger",
        sql.Column("model", sql.String(64), primary_key=True),
        sql.Column("sequence", sql.Integer, primary_key=True, autoincrement=False),
        sql.Column("role", sql.String(16), nullable=False),
        sql.Column("percent", sql.Integer, nullable=False),
        *(sql.Column(name, sql.String(16)) for name in ("from", "to")),
        *(sql.Column(name, sql.Text, nullable=False) for name in ("who", "why")),
        sql.Column("evidence", sql.Text),
        sql.Column("time", sql.String(32), nullable=False),
        sql.Column("applied_at", sql.String(32)),
        if_not_exists=True,
    )
    decided = ("version", "as_of", "verdict", "action", "rule", "reason", "cause", "inputs")
    op.create_table(
        "decisions",
        sql.Column("sequence", sql.Integer, primary_key=True),
        sql.Column("model", sql.String(64), nullable=False),
        *(sql.Column(name, sql.Text, nullable=False) for name in (*decided, "figures")),
        sql.Column("counted", sql.Text),
        if_not_exists=True,
    )
    said = ("cause", "message", "first", "last")
    op.create_table(
        "alerts",
        sql.Column("sequence", sql.Integer, primary_key=True),
        sql.Column("model", sql.String(64), nullable=False),
        *(sql.Column(name, sql.Text, nullable=False) for name in said),
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
