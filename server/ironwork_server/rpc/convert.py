"""Values to proto messages. Nothing here decides anything."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from ironwork.keys.v1 import keys_pb2
from ironwork_server.core.values import AuditReference, KeyState, StoredKey, Usage
from ironwork_server.custody.masked import MaskedKey

_STATES = {
    KeyState.ACTIVE: keys_pb2.KEY_STATE_ACTIVE,
    KeyState.REJECTED_BY_ANTHROPIC: keys_pb2.KEY_STATE_REJECTED_BY_ANTHROPIC,
}


def timestamp(time: datetime) -> Timestamp:
    """A proto timestamp."""
    message = Timestamp()
    message.FromDatetime(time)
    return message


def masked_key(key: MaskedKey) -> keys_pb2.MaskedKey:
    """The proto's MaskedKey."""
    return keys_pb2.MaskedKey(
        name=key.name,
        display_name=key.display_name,
        mask=key.mask,
        state=_STATES[key.state],
        current=key.current,
        organization_id=key.organization_id,
        create_time=timestamp(key.created_at),
        created_by=key.created_by,
        last_use_time=timestamp(key.last_used_at) if key.last_used_at else None,
        last_validate_time=timestamp(key.validated_at),
        master_key_version=keys_pb2.MasterKeyVersion(backend=key.backend, version=key.key_version),
    )


def serving_key(key: StoredKey) -> keys_pb2.ServingKey:
    """Which key served a call."""
    return keys_pb2.ServingKey(name=key.name, mask=key.mask)


def usage(tokens: Usage) -> keys_pb2.Usage:
    """Token counts."""
    return keys_pb2.Usage(
        input_tokens=tokens.input_tokens,
        output_tokens=tokens.output_tokens,
        cache_creation_input_tokens=tokens.cache_creation_input_tokens,
        cache_read_input_tokens=tokens.cache_read_input_tokens,
    )


def audit_reference(reference: AuditReference) -> keys_pb2.AuditReference:
    """Where an audit entry stands."""
    return keys_pb2.AuditReference(origin=reference.origin, index=reference.index)
