"""Between rows and values: exact both ways."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from ironwork_hsm import WrappedKey
from ironwork_server.core.values import KeyState, Replay, SealedKey, StoredKey
from ironwork_server.store.errors import StoreCorrupt

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_STATES = {state.value: state for state in KeyState}


def micros(time: datetime) -> int:
    """Microseconds since 1970 UTC. Raises ValueError for a time without a zone."""
    if time.tzinfo is None:
        raise ValueError("a stored time needs a time zone")
    return (time - _EPOCH) // _MICROSECOND


def moment(value: int) -> datetime:
    """The UTC time of micros()."""
    return _EPOCH + timedelta(microseconds=value)


def key_row(key: StoredKey) -> dict[str, object]:
    """The parameters of an insert into keys."""
    wrapped = key.sealed.wrapped
    return {
        "workspace": key.workspace,
        "key_id": key.key_id,
        "sequence": key.sequence,
        "display_name": key.display_name,
        "mask": key.mask,
        "state": key.state.value,
        "organization_id": key.organization_id,
        "created_at": micros(key.created_at),
        "created_by": key.created_by,
        "validated_at": micros(key.validated_at),
        "last_used_at": None if key.last_used_at is None else micros(key.last_used_at),
        "fingerprint": key.fingerprint,
        "format": key.sealed.format,
        "nonce": key.sealed.nonce,
        "ciphertext": key.sealed.ciphertext,
        **wrapped_row(wrapped),
    }


def stored_key(row: Sequence[Any]) -> StoredKey:
    """A row of keys, all columns in the schema's order. Raises StoreCorrupt."""
    try:
        return StoredKey(
            workspace=row[0],
            key_id=row[1],
            sequence=row[2],
            display_name=row[3],
            mask=row[4],
            state=_STATES[row[5]],
            organization_id=row[6],
            created_at=moment(row[7]),
            created_by=row[8],
            validated_at=moment(row[9]),
            last_used_at=None if row[10] is None else moment(row[10]),
            fingerprint=row[11],
            sealed=SealedKey(row[12], row[13], row[14], WrappedKey(*row[15:19])),
        )
    except (KeyError, TypeError, OverflowError):
        # Another program wrote into the table: no value of ours fails here.
        raise StoreCorrupt from None


def wrapped_row(wrapped: WrappedKey) -> dict[str, object]:
    """The wrap_* columns, in keys and in pepper."""
    return {
        "wrap_backend": wrapped.backend,
        "wrap_key_version": wrapped.key_version,
        "wrap_mechanism": wrapped.mechanism,
        "wrap_blob": wrapped.blob,
    }


def replay_row(replay: Replay) -> dict[str, object]:
    """The parameters of an insert into replays."""
    return {
        "workspace": replay.workspace,
        "method": replay.method,
        "request_id": replay.request_id,
        "digest": replay.digest,
        "answer": replay.answer,
        "created_at": micros(replay.created_at),
    }


def stored_replay(row: Sequence[Any]) -> Replay:
    """A row of replays, all columns in the schema's order. Raises StoreCorrupt."""
    try:
        return Replay(row[0], row[1], row[2], row[3], row[4], moment(row[5]))
    except (TypeError, OverflowError):
        raise StoreCorrupt from None
