"""The first schema. A migration states its tables itself: schema.py moves on, this does not.

There are no downgrades: going back is restoring the backup that was taken before.
"""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "keys",
        sa.Column("workspace", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("sequence", _ROW_NUMBER, autoincrement=False, nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("mask", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("validated_at", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("format", sa.Integer(), nullable=False),
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.Column("wrap_backend", sa.Text(), nullable=False),
        sa.Column("wrap_key_version", sa.Integer(), nullable=False),
        sa.Column("wrap_mechanism", sa.Text(), nullable=False),
        sa.Column("wrap_blob", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_keys")),
        sa.UniqueConstraint("workspace", "key_id", name=op.f("uq_keys_workspace_key_id")),
        sa.UniqueConstraint("workspace", "fingerprint", name=op.f("uq_keys_workspace_fingerprint")),
    )
    op.create_index(op.f("ix_keys_workspace_sequence"), "keys", ["workspace", "sequence"])
    op.create_table(
        "replays",
        sa.Column("workspace", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("workspace", "method", "request_id", name=op.f("pk_replays")),
    )
    op.create_index(op.f("ix_replays_created_at"), "replays", ["created_at"])
    op.create_table(
        "pepper",
        sa.Column("id", _ROW_NUMBER, autoincrement=False, nullable=False),
        sa.Column("wrap_backend", sa.Text(), nullable=False),
        sa.Column("wrap_key_version", sa.Integer(), nullable=False),
        sa.Column("wrap_mechanism", sa.Text(), nullable=False),
        sa.Column("wrap_blob", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pepper")),
        sa.CheckConstraint("id = 1", name=op.f("ck_pepper_single")),
    )
    counters = op.create_table(
        "counters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
    )
    meta = op.create_table(
        "meta",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_meta")),
    )
    op.bulk_insert(
        counters,
        [{"name": name, "value": 0} for name in ("sequence", "deleted", "erased")],
    )
    op.bulk_insert(
        meta,
        [
            {"name": "marker", "value": ""},
            {"name": "installation_id", "value": str(uuid.uuid4())},
        ],
    )
