"""Values as proto messages."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironwork.keys.v1 import keys_pb2
from ironwork_server.core.values import AuditReference, KeyState, Usage
from ironwork_server.custody.masked import MaskedKey
from ironwork_server.rpc import convert

NOW = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)


def masked(**changes: object) -> MaskedKey:
    values: dict[str, object] = {
        "name": "workspaces/acme/keys/k1",
        "display_name": "first",
        "mask": "sk-ant-api…AAzz",
        "state": KeyState.ACTIVE,
        "current": True,
        "organization_id": "org",
        "created_at": NOW,
        "created_by": "spiffe://d/a",
        "last_used_at": None,
        "validated_at": NOW,
        "backend": "pkcs11:token=t",
        "key_version": 3,
    }
    return MaskedKey(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("state", KeyState)
def test_every_state_has_its_proto_value(state: KeyState) -> None:
    """A state shows under its own name; none shows as UNSPECIFIED."""
    shown = convert.masked_key(masked(state=state)).state
    assert keys_pb2.KeyState.Name(shown) == f"KEY_STATE_{state.name}"


def test_a_masked_key_shows_all_that_a_listing_promises() -> None:
    """Names, mask, state, current, organisation, times and the master key's version."""
    shown = convert.masked_key(masked(last_used_at=NOW))
    assert shown.name == "workspaces/acme/keys/k1"
    assert (shown.display_name, shown.mask, shown.current) == ("first", "sk-ant-api…AAzz", True)
    assert (shown.organization_id, shown.created_by) == ("org", "spiffe://d/a")
    for time in (shown.create_time, shown.last_use_time, shown.last_validate_time):
        assert time.ToDatetime(UTC) == NOW
    version = shown.master_key_version
    assert (version.backend, version.version) == ("pkcs11:token=t", 3)


def test_a_key_that_was_never_used_has_no_time_of_use() -> None:
    """Absent is not the year 1970."""
    assert not convert.masked_key(masked()).HasField("last_use_time")


@given(st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))])))
def test_times_keep_their_instant(time: datetime) -> None:
    """A timestamp is the same instant, whatever zone it was given in."""
    try:
        expected = time.astimezone(UTC)
    except OverflowError:  # before the year 1 in UTC
        return
    assert convert.timestamp(time).ToDatetime(UTC) == expected


def test_usage_and_references_keep_their_numbers() -> None:
    """Token counts and an entry's place arrive as they are."""
    usage = convert.usage(Usage(1, 2, 3, 4))
    assert [usage.input_tokens, usage.output_tokens] == [1, 2]
    assert [usage.cache_creation_input_tokens, usage.cache_read_input_tokens] == [3, 4]
    reference = convert.audit_reference(AuditReference("a/b", 7))
    assert (reference.origin, reference.index) == ("a/b", 7)
