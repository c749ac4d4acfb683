"""AuditService over gRPC: filters, pages, the signed tree, following, and what is refused."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from fixtures.agent import Agent, reason_of, status_of
from fixtures.server import ADMIN, AGENT, PARENT, TestService, spiffe
from ironwork.keys.v1 import audit_pb2, keys_pb2
from ironwork_audit.tlog import (
    Checkpoint,
    VerifierKey,
    leaf_hash,
    parse_note,
    verify_consistency,
    verify_inclusion,
)
from ironwork_audit.tlog.signed import open_checkpoint
from ironwork_client.errors import OutOfRange, from_rpc

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


async def test_a_listing_begins_at_an_index(service: TestService) -> None:
    """start_index is the first that is listed, and pages go on from there; one past the end lists
    nothing, one past any log is refused.
    """
    for _ in range(2):
        await service.add()
    request, stub = audit_pb2.ListEntriesRequest(start_index=3, page_size=2), service.audit()
    first = await stub.ListEntries(request, timeout=DEADLINE_S)
    request.page_token = first.next_page_token
    second = await stub.ListEntries(request, timeout=DEADLINE_S)
    assert [entry.index for entry in (*first.entries, *second.entries)] == [3, 4, 5, 6]
    assert not await entries(service, start_index=10_000)
    code, _, text = await refused(service, start_index=2**63)
    assert (code, text[:13]) == (grpc.StatusCode.INVALID_ARGUMENT, "start_index: ")


async def test_what_was_pruned_is_out_of_range(service: TestService) -> None:
    """Entries that were moved away, and their proofs, are OUT_OF_RANGE with the first index that is
    there, from which all is answered.
    """
    stub, listing = service.audit(), keys_pb2.ListMaskedRequest(parent=PARENT)
    for _ in range(15):
        await asyncio.gather(
            *(service.keys().ListMasked(listing, timeout=DEADLINE_S) for _ in range(20))
        )
    await service.add()  # answered when a checkpoint covers it, so the tiles are there
    for name in ("entries/000", "0/000"):
        (service.folder / "audit" / "tile" / name).unlink()
    for call in (
        stub.ListEntries(audit_pb2.ListEntriesRequest(), timeout=DEADLINE_S),
        stub.FollowEntries(
            audit_pb2.FollowEntriesRequest(start_index=9), timeout=DEADLINE_S
        ).read(),
        stub.GetInclusionProof(audit_pb2.GetInclusionProofRequest(index=9), timeout=DEADLINE_S),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        told = from_rpc(error.value)
        assert isinstance(told, OutOfRange)
        assert (told.reason, told.first_index) == ("AUDIT_PRUNED", 256)
    assert (await entries(service, start_index=256))[0].index == 256


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


async def signed(service: TestService) -> audit_pb2.GetCheckpointResponse:
    return await service.audit().GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=DEADLINE_S)


async def test_an_addition_is_in_the_signed_log(service: TestService) -> None:
    """When AddKey has answered, its outcome is proven to be under a checkpoint that the log's key
    signed; and the checkpoint that follows has only grown from it.
    """
    await service.add()
    first = await signed(service)
    opened = open_checkpoint(first.checkpoint, VerifierKey.parse(first.verifier_key)).checkpoint
    assert opened.origin == "ironwork.test/server"
    outcome = (await entries(service, operation="AddKey"))[-1]
    assert outcome.index < opened.size
    stub = service.audit()
    proof = await stub.GetInclusionProof(
        audit_pb2.GetInclusionProofRequest(index=outcome.index, size=opened.size),
        timeout=DEADLINE_S,
    )
    leaf = leaf_hash(outcome.event)
    verify_inclusion(outcome.index, opened.size, leaf, list(proof.hashes), opened.root)
    await service.add()
    later = Checkpoint.parse(parse_note((await signed(service)).checkpoint).text)
    assert later.size > opened.size
    grown = await stub.GetConsistencyProof(
        audit_pb2.GetConsistencyProofRequest(old_size=opened.size, size=later.size),
        timeout=DEADLINE_S,
    )
    verify_consistency(opened.size, later.size, opened.root, later.root, list(grown.hashes))
    newest = await stub.GetConsistencyProof(
        audit_pb2.GetConsistencyProofRequest(old_size=0), timeout=DEADLINE_S
    )
    assert (list(newest.hashes), newest.size >= later.size) == ([], True)


@pytest.mark.parametrize(
    ("method", "field", "values"),
    [
        ("GetInclusionProof", "index", {"index": 2**63}),
        ("GetInclusionProof", "size", {"index": 0, "size": 2**62}),
        ("GetConsistencyProof", "old_size", {"old_size": 2**62}),
        ("GetConsistencyProof", "size", {"size": 2**62}),
    ],
)
async def test_what_is_not_signed_is_not_proven(
    service: TestService, method: str, field: str, values: dict[str, int]
) -> None:
    """A proof beyond the published checkpoint is refused by the field that asks for it."""
    await service.add()
    request = getattr(audit_pb2, f"{method}Request")(**values)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await getattr(service.audit(), method)(request, timeout=DEADLINE_S)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(error.value.details()).startswith(f"{field}: ")


async def test_a_follower_gets_what_comes(service: TestService) -> None:
    """What is there already and what is written later, filtered, each once; and a follower goes on
    where it stopped.
    """
    key = await service.add()
    stub = service.audit()
    wanted = audit_pb2.FollowEntriesRequest(key=key.name, operation="DeleteKey")
    following = stub.FollowEntries(wanted, timeout=DEADLINE_S)
    adding = stub.FollowEntries(
        audit_pb2.FollowEntriesRequest(operation="AddKey"), timeout=DEADLINE_S
    )
    assert len((await adding.read()).entries) == 2
    adding.cancel()
    await service.keys().DeleteKey(keys_pb2.DeleteKeyRequest(name=key.name), timeout=DEADLINE_S)
    found = []
    while len(found) < 2:
        message = await following.read()
        found += message.entries
    assert [entry.index for entry in found] == [
        entry.index for entry in await entries(service, operation="DeleteKey")
    ]
    following.cancel()
    again = stub.FollowEntries(
        audit_pb2.FollowEntriesRequest(start_index=found[1].index, operation="DeleteKey"),
        timeout=DEADLINE_S,
    )
    assert [entry.index for entry in (await again.read()).entries] == [found[1].index]
    again.cancel()


async def test_a_follower_is_on_record(service: TestService) -> None:
    """Following is an RPC like the others: an intent when it begins, an outcome when it ends."""
    call = service.audit().FollowEntries(audit_pb2.FollowEntriesRequest(), timeout=DEADLINE_S)
    assert (await call.read()).entries
    call.cancel()
    outcome = None
    async with asyncio.timeout(DEADLINE_S):
        while outcome is None:
            # Reading the log is on record too, so there is always something to wait for.
            events = [json.loads(each.event) for each in await entries(service)]
            reads = [each for each in events if each["metadata"]["event_code"] == "ReadAudit"]
            intent = reads[0]["metadata"]["sequence"]
            ended = [each for each in reads if each["unmapped"].get("intent_index") == intent]
            outcome = ended[0] if ended else None
    assert (reads[0]["unmapped"]["phase"], outcome["status_detail"]) == ("intent", "DISCONNECTED")


async def test_a_follower_with_a_wrong_index(service: TestService) -> None:
    """An index that no log has is refused by its field."""
    call = service.audit().FollowEntries(
        audit_pb2.FollowEntriesRequest(start_index=2**63), timeout=DEADLINE_S
    )
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call.read()
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_drain_ends_followers(service: TestService) -> None:
    """A follower ends with OK when the server drains, long before the drain's grace is over."""
    call = service.audit().FollowEntries(audit_pb2.FollowEntriesRequest(), timeout=DEADLINE_S)
    assert (await call.read()).entries
    service.service.drain.begin(30)
    async with asyncio.timeout(DEADLINE_S):
        while await call.read() is not grpc.aio.EOF:
            pass
    assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    "method", ["GetCheckpoint", "GetInclusionProof", "GetConsistencyProof", "FollowEntries"]
)
@pytest.mark.parametrize("path", [ADMIN, AGENT])
async def test_the_tree_is_for_auditors_alone(service: TestService, method: str, path: str) -> None:
    """Whoever is not an auditor is refused each of them."""
    call = getattr(service.audit(path), method)(
        getattr(audit_pb2, f"{method}Request")(), timeout=DEADLINE_S
    )
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await (call.read() if method == "FollowEntries" else call)
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_follower_gets_much_in_bits(
    service: TestService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there already comes in bounded messages, each saying where to go on."""
    monkeypatch.setattr("ironwork_server.custody.read_audit.FOLLOW_BATCH", 1)
    await service.add()
    call = service.audit().FollowEntries(audit_pb2.FollowEntriesRequest(), timeout=DEADLINE_S)
    for index in range(5):
        message = await call.read()
        assert [entry.index for entry in message.entries] == [index]
        assert message.next_index == index + 1
    call.cancel()
