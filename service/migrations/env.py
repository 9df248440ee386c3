"""Alembic's entry. The connection is given by ``Store.open``, whose transaction and lock the migrations run in."""

from alembic import context

from service.models import Base

VERSION_TABLE = "manta_alembic"  # Optuna keeps its own migrations in Alembic's default table.

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
