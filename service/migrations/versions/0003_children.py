"""Jobs that are trials of a study."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("parent", sa.String(length=32), nullable=True))
    op.add_column("jobs", sa.Column("trial", sa.BigInteger(), nullable=True))
    op.create_index(op.f("ix_jobs_parent_trial"), "jobs", ["parent", "trial"], unique=True)


def downgrade() -> None:
    op.drop_index(op.f("ix_jobs_parent_trial"), "jobs")
    op.drop_column("jobs", "trial")
    op.drop_column("jobs", "parent")
