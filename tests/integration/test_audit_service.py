"""ListEntries over gRPC: filters, pages, and what they refuse."""

from __future__ import annotations

import json

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from fixtures.agent import Agent, reason_of, status_of
from fixtures.server import ADMIN, AGENT, PARENT, TestService, spiffe
from ironwork.keys.v1 import audit_pb2, keys_pb2

DEADLINE_S = 20


async def entries(service: TestService, **request: object) -> list[audit_pb2.AuditEntry]:
    """Every entry that matches, over all pages."""
    stub = service.audit()
    found: list[audit_pb2.AuditEntry] = []
    token = ""
    while True:
        page = await stub.ListEntries(
            audit_pb2.ListEntriesRequest(page_token=token, **request),  # type: ignore[arg-type]
            timeout=DEADLINE_S,
        )
        found += page.entries
        token = page.next_page_token
        if not token:
            return found


def names(found: list[audit_pb2.AuditEntry]) -> set[str]:
    """The operations of entries."""
    return {json.loads(entry.event)["metadata"]["event_code"] for entry in found}


async def refused(service: TestService, **request: object) -> tuple[grpc.StatusCode, str, str]:
    """How a request is refused: code, reason, text."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await service.audit().ListEntries(
            audit_pb2.ListEntriesRequest(**request),  # type: ignore[arg-type]
            timeout=DEADLINE_S,
        )
    status = status_of(error.value)
    return error.value.code(), reason_of(status), status.message


async def test_filters_narrow_what_is_listed(service: TestService) -> None:
    """By workspace, key, principal, operation and time; what matches none of it is left out."""
    key = await service.add()
    other = await service.add(parent="workspaces/globex")
    agent = Agent(service.keys(AGENT))
    await agent.start()
    await agent.message()
    await agent.close()
    everything = await entries(service)
    assert [entry.index for entry in everything] == list(range(len(everything)))
    assert {entry.origin for entry in everything} == {"ironwork.test/server"}
    by_workspace = await entries(service, workspace=PARENT)
    assert {"AddKey", "WithKey", "hsm.unwrap"} <= names(by_workspace)
    assert all(b"globex" not in entry.event for entry in by_workspace)
    by_key = await entries(service, key=other.name)
    assert by_key
    assert all(b"globex" in entry.event for entry in by_key)
    assert not await entries(service, key=key.name, operation="DeleteKey")
    by_principal = await entries(service, principal=spiffe(ADMIN))
    assert "AddKey" in names(by_principal)
    assert "WithKey" not in names(by_principal)
    assert names(await entries(service, operation="WithKey")) == {"WithKey"}
    far = Timestamp(seconds=4_000_000_000)
    assert not await entries(service, start_time=far)
    assert len(await entries(service, end_time=far)) >= len(everything)


async def test_pages_hold_what_was_asked_for(service: TestService) -> None:
    """Small pages give every entry once, in order."""
    await service.add()
    by_twos = await entries(service, page_size=2, workspace=PARENT)
    whole = await entries(service, workspace=PARENT)
    assert [entry.index for entry in by_twos] == [entry.index for entry in whole]


@pytest.mark.parametrize("field", ["start_time", "end_time"])
async def test_a_bad_timestamp_names_its_field(service: TestService, field: str) -> None:
    """A time outside the years 1 to 9999 is INVALID_ARGUMENT with the field's name."""
    for wrong in (Timestamp(seconds=2**60), Timestamp(seconds=-(2**60)), Timestamp(nanos=-1)):
        code, reason, text = await refused(service, **{field: wrong})
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert text.startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("workspace", "acme"),
        ("workspace", "workspaces/../acme"),
        ("key", "workspaces/acme"),
        ("key", "workspaces/acme/keys/"),
        ("page_size", -1),
        ("page_token", "x"),
        ("page_token", "A" * 32),
    ],
)
async def test_a_malformed_filter_names_its_field(
    service: TestService, field: str, value: object
) -> None:
    """What cannot be a name, a size or a token is refused by its field."""
    code, _, text = await refused(service, **{field: value})
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith(f"{field}: ")


async def test_a_page_token_of_another_listing_is_refused(service: TestService) -> None:
    """A token is good for the listing that gave it, not for another that this server has."""
    for _ in range(2):
        await service.add()
    listed = await service.keys().ListMasked(
        keys_pb2.ListMaskedRequest(parent=PARENT, page_size=1), timeout=DEADLINE_S
    )
    assert listed.next_page_token
    code, _, text = await refused(service, page_token=listed.next_page_token)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith("page_token: ")
