"""What Alembic runs around each migration: on the connection that `migrate` gives it."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
