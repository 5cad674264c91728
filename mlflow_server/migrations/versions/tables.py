"""The tables of this layout."""

import sqlalchemy as sql
from alembic import op

from core.settings import LAYOUT

revision = LAYOUT
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
        sql.Column("action", sql.String(32), nullable=False),
    )
    op.create_table(
        "alerts",
        sql.Column("sequence", sql.Integer, primary_key=True),
        sql.Column("model", sql.String(64), nullable=False),
        *texts("cause", "message", "first", "last"),
        sql.Column("details", sql.Text),
        sql.Column("count", sql.Integer, nullable=False),
        sql.Column("delivered", sql.Boolean, nullable=False),
    )
    op.create_index("ix_alerts_model", "alerts", ["model"])
