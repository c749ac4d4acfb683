"""What may be told of a key, and its form as a kept answer (AIP-155)."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from ironwork_server.core.values import KeyState, StoredKey


@dataclass(frozen=True, slots=True)
class MaskedKey:
    """A key as anybody may see it: the proto's MaskedKey, field for field."""

    name: str
    display_name: str
    mask: str
    state: KeyState
    current: bool
    organization_id: str
    created_at: datetime
    created_by: str
    last_used_at: datetime | None
    validated_at: datetime
    backend: str
    key_version: int


def mask_row(row: StoredKey, *, current: bool) -> MaskedKey:
    """A row without what is sealed in it."""
    return MaskedKey(
        name=row.name,
        display_name=row.display_name,
        mask=row.mask,
        state=row.state,
        current=current,
        organization_id=row.organization_id,
        created_at=row.created_at,
        created_by=row.created_by,
        last_used_at=row.last_used_at,
        validated_at=row.validated_at,
        backend=row.sealed.wrapped.backend,
        key_version=row.sealed.wrapped.key_version,
    )


def encode_answer(key: MaskedKey | None) -> bytes:
    """The answer to a write, to be kept beside its request_id."""
    if key is None:
        return b"null"
    return json.dumps(
        {
            "name": key.name,
            "display_name": key.display_name,
            "mask": key.mask,
            "state": key.state.value,
            "current": key.current,
            "organization_id": key.organization_id,
            "created_at": _micros(key.created_at),
            "created_by": key.created_by,
            "last_used_at": _micros(key.last_used_at) if key.last_used_at else None,
            "validated_at": _micros(key.validated_at),
            "backend": key.backend,
            "key_version": key.key_version,
        }
    ).encode()


def decode_answer(answer: bytes) -> MaskedKey | None:
    """What encode_answer kept."""
    kept = json.loads(answer)
    if kept is None:
        return None
    used = kept["last_used_at"]
    return MaskedKey(
        name=kept["name"],
        display_name=kept["display_name"],
        mask=kept["mask"],
        state=KeyState(kept["state"]),
        current=kept["current"],
        organization_id=kept["organization_id"],
        created_at=_time(kept["created_at"]),
        created_by=kept["created_by"],
        last_used_at=_time(used) if used is not None else None,
        validated_at=_time(kept["validated_at"]),
        backend=kept["backend"],
        key_version=kept["key_version"],
    )


def _micros(time: datetime) -> int:
    seconds = int(time.replace(microsecond=0).timestamp())
    return seconds * 1_000_000 + time.microsecond


def _time(micros: int) -> datetime:
    return datetime.fromtimestamp(micros // 1_000_000, UTC).replace(microsecond=micros % 1_000_000)
