"""The tables, for every database that the store runs on.

Times are integer microseconds since 1970 UTC: exact, ordered, and the same everywhere. Secrets
are there as ciphertext only (core.values.SealedKey, and the pepper wrapped by the master key).
Migrations create these tables; a test holds that both agree.
"""

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

# SQLite makes an INTEGER primary key the row's own number; a BIGINT one would be a second index.
_RowNumber = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

keys = sa.Table(
    "keys",
    metadata,
    # The order of the columns is the order in which rows.stored_key reads them.
    sa.Column("workspace", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("sequence", _RowNumber, primary_key=True, autoincrement=False),
    sa.Column("display_name", sa.Text, nullable=False),
    sa.Column("mask", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("organization_id", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("validated_at", sa.BigInteger, nullable=False),
    sa.Column("last_used_at", sa.BigInteger, nullable=True),
    # HMAC-SHA256 of the key under the pepper.
    sa.Column("fingerprint", sa.LargeBinary, nullable=False),
    sa.Column("format", sa.Integer, nullable=False),
    sa.Column("nonce", sa.LargeBinary, nullable=False),
    sa.Column("ciphertext", sa.LargeBinary, nullable=False),
    sa.Column("wrap_backend", sa.Text, nullable=False),
    sa.Column("wrap_key_version", sa.Integer, nullable=False),
    sa.Column("wrap_mechanism", sa.Text, nullable=False),
    sa.Column("wrap_blob", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("workspace", "key_id"),
    sa.UniqueConstraint("workspace", "fingerprint"),
    # Newest first: databases walk an index backwards as fast as forwards.
    sa.Index(None, "workspace", "sequence"),
)

replays = sa.Table(
    "replays",
    metadata,
    sa.Column("workspace", sa.Text, primary_key=True),
    sa.Column("method", sa.Text, primary_key=True),
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("answer", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False, index=True),
)

pepper = sa.Table(
    "pepper",
    metadata,
    # One row, or none on a new store.
    sa.Column("id", _RowNumber, primary_key=True, autoincrement=False),
    sa.Column("wrap_backend", sa.Text, nullable=False),
    sa.Column("wrap_key_version", sa.Integer, nullable=False),
    sa.Column("wrap_mechanism", sa.Text, nullable=False),
    sa.Column("wrap_blob", sa.LargeBinary, nullable=False),
    sa.CheckConstraint("id = 1", name="single"),
)

# The organisation of each workspace's last key that named one; it stays when the keys go.
organizations = sa.Table(
    "organizations",
    metadata,
    sa.Column("workspace", sa.Text, primary_key=True),
    sa.Column("organization_id", sa.Text, nullable=False),
)

# Data keys sealed for an offline recipient, by their row's sequence; 0 is the pepper's.
break_glass = sa.Table(
    "break_glass",
    metadata,
    sa.Column("sequence", _RowNumber, primary_key=True, autoincrement=False),
    sa.Column("recipient", sa.Text, nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
)

# Versions of master keys: switched on (one of each backend at most), or retired.
master_keys = sa.Table(
    "master_keys",
    metadata,
    sa.Column("backend", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("state", sa.Text, nullable=False),
)

# The newest head of each audit log that may have been signed; recorded before it is.
log_heads = sa.Table(
    "log_heads",
    metadata,
    sa.Column("origin", sa.Text, primary_key=True),
    sa.Column("folder_id", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("root", sa.LargeBinary, nullable=False),
    sa.Column("signed_at", sa.BigInteger, nullable=False),
)

# `sequence`: the last number given out. `deleted`: how many rows were destroyed; `erased`: up to
# which of them the files hold no trace (SQLite; see erasure.py).
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

# `marker`: '' or 'dev'. `installation_id`: a UUID4 made with the store.
meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
