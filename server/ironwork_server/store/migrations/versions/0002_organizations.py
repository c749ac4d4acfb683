"""Which Anthropic organisation each workspace's last named key was of, also when it has none left.

Filled from the keys that there are; what was deleted before is not known.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# The newest key of each workspace that names its organisation.
_FILL = """
INSERT INTO organizations (workspace, organization_id)
SELECT workspace, organization_id FROM keys
WHERE sequence IN (SELECT max(sequence) FROM keys WHERE organization_id <> '' GROUP BY workspace)
"""


def upgrade() -> None:
    op.create_table(
        "organizations",
        sa.Column("workspace", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("workspace", name=op.f("pk_organizations")),
    )
    op.execute(_FILL)
