"""The typed clients for keys and the audit log, over real gRPC."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironwork.keys.v1 import audit_pb2, keys_pb2
from ironwork_client import (
    AlreadyExists,
    AsyncKeyClient,
    AuditClient,
    AuditRecord,
    DeadlineExceeded,
    InvalidArgument,
    KeyClient,
    KeyState,
    MasterKeyVersion,
    Profile,
    ProfileError,
    Unavailable,
)
from ironwork_client._syntax import check_key
from unit.client import scripted_server as scripted
from unit.client.scripted_server import status

KEY = "sk-ant-api03-" + "x" * 40 + "wxyz"
NAME = "workspaces/acme/keys/4b7c1f4e-0000-4000-8000-000000000001"
Server = scripted.ScriptedServer


def masked(name: str = NAME, **values: object) -> keys_pb2.MaskedKey:
    key = keys_pb2.MaskedKey(
        name=name, mask="sk-ant-api…wxyz", state=keys_pb2.KEY_STATE_ACTIVE, current=True, **values
    )
    key.create_time.FromDatetime(datetime(2026, 11, 23, 9, 0, tzinfo=UTC))
    return key


@pytest.fixture
def seen(scripted_server: Server) -> list[object]:
    """Requests that the server got; it answers each in the plainest way."""
    requests: list[object] = []

    def answer(make: Callable[[], object]) -> Callable[[object, grpc.ServicerContext], object]:
        def handler(request: object, _: grpc.ServicerContext) -> object:
            requests.append(request)
            return make()

        return handler

    scripted_server.unary = {
        "AddKey": answer(lambda: keys_pb2.AddKeyResponse(key=masked())),
        "DeleteKey": answer(
            lambda: keys_pb2.DeleteKeyResponse(current=masked(), cancelled_requests=2)
        ),
    }
    return requests


def test_add_sends_the_key_and_gives_the_mask(profile: Profile, seen: list[object]) -> None:
    """The request has a request id of its own; the answer is a value without a key."""
    with KeyClient(profile) as client:
        key = client.add(KEY, "first", allow_different_organization=True)
        client.add(KEY.encode(), request_id="chosen")
    first, second = seen
    assert (first.parent, first.api_key) == ("workspaces/acme", KEY.encode())
    assert (first.display_name, first.allow_different_organization) == ("first", True)
    assert UUID(first.request_id).version == 4
    assert second.request_id == "chosen"
    assert (key.key_id, key.state, key.current) == (NAME[-36:], KeyState.ACTIVE, True)
    assert key.created_at == datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
    assert (key.last_used_at, key.master_key_version) == (None, None)


def test_delete_takes_a_name_or_an_id(profile: Profile, seen: list[object]) -> None:
    """An id is completed with the profile's workspace."""
    with KeyClient(profile) as client:
        result = client.delete(NAME[-36:], cancel_in_flight=True)
        client.delete("workspaces/other/keys/x")
    assert [request.name for request in seen] == [NAME, "workspaces/other/keys/x"]
    assert [request.cancel_in_flight for request in seen] == [True, False]
    assert result.current is not None
    assert (result.current.name, result.cancelled_requests) == (NAME, 2)


def pages(request: keys_pb2.ListMaskedRequest, _: object) -> keys_pb2.ListMaskedResponse:
    page = int(request.page_token or "0")
    key = masked(
        f"workspaces/acme/keys/{page}",
        master_key_version=keys_pb2.MasterKeyVersion(backend="pkcs11:", version=3),
    )
    return keys_pb2.ListMaskedResponse(
        keys=[key], next_page_token=str(page + 1) if page < 2 else ""
    )


def test_list_reads_all_pages(profile: Profile, scripted_server: Server) -> None:
    """Pages are asked for as the keys are taken."""
    scripted_server.unary["ListMasked"] = pages
    with KeyClient(profile) as client:
        keys = list(client.list())
    assert [key.key_id for key in keys] == ["0", "1", "2"]
    assert keys[0].master_key_version == MasterKeyVersion("pkcs11:", 3)


async def test_the_async_client_does_the_same(
    profile: Profile, scripted_server: Server, seen: list[object]
) -> None:
    """add, list and delete over asyncio."""
    scripted_server.unary["ListMasked"] = pages
    async with AsyncKeyClient(profile) as client:
        assert (await client.add(KEY)).name == NAME
        assert [key.key_id async for key in client.list()] == ["0", "1", "2"]
        assert (await client.delete(NAME)).cancelled_requests == 2
    assert [type(request).__name__ for request in seen] == ["AddKeyRequest", "DeleteKeyRequest"]


def refuse(error: object) -> Callable[[object, grpc.ServicerContext], object]:
    return lambda _, context: scripted.abort(context, error)


async def test_errors_are_typed(profile: Profile, scripted_server: Server) -> None:
    """Every method raises our tree, with reason and retry delay, sync and async alike."""
    scripted_server.unary = {
        "AddKey": refuse(status(grpc.StatusCode.UNAVAILABLE, "ANTHROPIC_UNAVAILABLE", retry_s=7)),
        "ListMasked": refuse(status(grpc.StatusCode.ALREADY_EXISTS, "KEY_EXISTS")),
        "DeleteKey": refuse(status(grpc.StatusCode.ALREADY_EXISTS, "KEY_EXISTS")),
        "ListEntries": refuse(status(grpc.StatusCode.ALREADY_EXISTS, "KEY_EXISTS")),
    }
    with KeyClient(profile) as client, AuditClient(profile) as audit:
        with pytest.raises(Unavailable) as caught:
            client.add(KEY)
        assert (caught.value.reason, caught.value.retry_after) == ("ANTHROPIC_UNAVAILABLE", 7.0)
        assert caught.value.__cause__ is None
        for call in (
            lambda: list(client.list()),
            lambda: client.delete("x"),
            lambda: list(audit.entries()),
        ):
            with pytest.raises(AlreadyExists, match="No"):
                call()
    async with AsyncKeyClient(profile) as other:
        with pytest.raises(Unavailable):
            await other.add(KEY)
        with pytest.raises(AlreadyExists):
            await other.delete("x")
        with pytest.raises(AlreadyExists):
            [key async for key in other.list()]


def test_a_server_that_is_silent_is_a_deadline(profile: Profile, scripted_server: Server) -> None:
    """No call waits longer than its deadline; the error says that it may have been done."""

    def silent(_: object, context: grpc.ServicerContext) -> object:
        while context.is_active():
            context.time_remaining()
        return keys_pb2.AddKeyResponse()

    scripted_server.unary["AddKey"] = silent
    with (
        KeyClient(profile, deadline=0.2) as client,
        pytest.raises(DeadlineExceeded, match="request_id"),
    ):
        client.add(KEY)


def test_a_server_that_is_away_is_unavailable(profile: Profile, scripted_server: Server) -> None:
    """The error says what to check, and does not show a library's text."""
    scripted_server.stop()
    with KeyClient(profile) as client, pytest.raises(Unavailable, match="target") as caught:
        client.delete("x")
    assert "127.0.0.1" not in str(caught.value)


def test_keys_need_a_workspace(profile: Profile) -> None:
    """A profile without one is refused when the client is made."""
    bare = Profile(profile.target, profile.ca, profile.certificate, profile.private_key)
    with pytest.raises(ProfileError, match="workspace"):
        KeyClient(bare)


WRONG = {
    "": ("API_KEY_MALFORMED", "empty"),
    "sk-ant-api03-short": ("API_KEY_MALFORMED", "shorter"),
    "sk-ant-api03-" + "x" * 300: ("API_KEY_MALFORMED", "longer"),
    "sk-ant-admin01-" + "x" * 40: ("ADMIN_KEY_REFUSED", "Admin"),
    "sk-ant-oat01-" + "x" * 40: ("OAUTH_TOKEN_REFUSED", "OAuth"),
    "sk-ant-sid01-" + "x" * 40: ("API_KEY_MALFORMED", "session"),
    "sk-proj-" + "x" * 40: ("API_KEY_MALFORMED", "sk-ant-api"),
    f" {KEY}": ("API_KEY_MALFORMED", "blank"),
    f"{KEY}\n": ("API_KEY_MALFORMED", "line break"),
    KEY + "ü": ("API_KEY_MALFORMED", "ASCII"),
}


@pytest.mark.parametrize(("key", "expected"), WRONG.items(), ids=range(len(WRONG)))
def test_what_is_no_key_does_not_leave(
    profile: Profile,
    scripted_server: Server,
    seen: list[object],
    key: str,
    expected: tuple[str, str],
) -> None:
    """The form is checked here first; the error names the field and never holds the value."""
    with KeyClient(profile) as client, pytest.raises(InvalidArgument, match=expected[1]) as caught:
        client.add(key)
    assert caught.value.reason == expected[0]
    assert caught.value.violations[0].field == "api_key"
    assert "xxxx" not in f"{caught.value!r} {caught.value.metadata} {caught.value.violations}"
    assert seen == []


@given(st.binary(max_size=300))
def test_no_input_is_repeated(data: bytes) -> None:
    """Whatever is typed, the error's text is one of a fixed set of sentences."""
    canary = data + b"\x00canary"
    with pytest.raises(InvalidArgument) as caught:
        check_key(canary)
    assert "canary" not in str(caught.value)


def test_audit_entries_come_page_by_page(profile: Profile, scripted_server: Server) -> None:
    """Filters are sent with every page; entries keep their exact bytes."""
    seen: list[audit_pb2.ListEntriesRequest] = []

    def handler(request: audit_pb2.ListEntriesRequest, _: object) -> audit_pb2.ListEntriesResponse:
        copy = audit_pb2.ListEntriesRequest()
        copy.CopyFrom(request)
        seen.append(copy)
        number = len(seen) - 1
        entry = audit_pb2.AuditEntry(origin="o", index=number, event=b'{"n":%d}' % number)
        return audit_pb2.ListEntriesResponse(
            entries=[entry], next_page_token="next" if number == 0 else ""
        )

    scripted_server.unary["ListEntries"] = handler
    berlin = timezone(timedelta(hours=1))
    with AuditClient(profile) as client:
        got = list(
            client.entries(
                workspace="workspaces/acme",
                key=NAME,
                principal="spiffe://x/y",
                operation="AddKey",
                start=datetime(2026, 11, 23, 10, 0, tzinfo=berlin),
            )
        )
        with pytest.raises(ValueError, match="zone"):
            next(client.entries(end=datetime(2026, 1, 1)))  # noqa: DTZ001 - what is refused
    assert got == [AuditRecord("o", 0, b'{"n":0}'), AuditRecord("o", 1, b'{"n":1}')]
    assert got[1].parsed() == {"n": 1}
    assert [request.page_token for request in seen] == ["", "next"]
    assert all(request.operation == "AddKey" for request in seen)
    assert seen[0].start_time.ToDatetime(UTC) == datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
    assert not seen[0].HasField("end_time")
    with pytest.raises(ValueError, match="object"):
        AuditRecord("o", 0, b"[]").parsed()
