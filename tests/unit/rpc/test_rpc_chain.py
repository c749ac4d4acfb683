"""The wrapper around every unary handler: identity, policy, then the request itself."""

from __future__ import annotations

import grpc
import pytest

from fixtures.agent import reason_of, status_of
from fixtures.server import ADMIN, AGENT, PARENT, TestService
from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc

MALFORMED = "workspaces/../acme"
DEADLINE_S = 20


async def refused(call: grpc.aio.UnaryUnaryCall) -> tuple[grpc.StatusCode, str, str]:
    """How a call is refused: code, reason, text."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    status = status_of(error.value)
    assert status.message == error.value.details()
    return error.value.code(), reason_of(status), status.message


async def test_who_may_is_told_what_is_wrong(service: TestService) -> None:
    """A key admin's malformed name is INVALID_ARGUMENT with the field's name."""
    stub = service.keys(ADMIN)
    for call, field in (
        (stub.AddKey(keys_pb2.AddKeyRequest(parent=MALFORMED), timeout=DEADLINE_S), "parent"),
        (stub.ListMasked(keys_pb2.ListMaskedRequest(parent=""), timeout=DEADLINE_S), "parent"),
        (stub.DeleteKey(keys_pb2.DeleteKeyRequest(name=PARENT), timeout=DEADLINE_S), "name"),
    ):
        code, _, text = await refused(call)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert text.startswith(f"{field}: ")


async def test_who_may_not_learns_nothing_of_the_request(service: TestService) -> None:
    """Authorisation comes before validation: a malformed, a foreign and an unknown name answer an
    agent alike (AIP-211).
    """
    stub = service.keys(AGENT)
    answers = {
        await refused(stub.DeleteKey(keys_pb2.DeleteKeyRequest(name=name), timeout=DEADLINE_S))
        for name in (MALFORMED, f"{PARENT}/keys/unknown", "workspaces/globex/keys/unknown", "")
    }
    assert len(answers) == 1
    assert answers.pop()[0] is grpc.StatusCode.PERMISSION_DENIED


async def test_a_foreign_workspace_answers_as_one_that_is_not_there(service: TestService) -> None:
    """An admin learns of no other company that it is a customer."""
    await service.add(parent="workspaces/globex")
    answers = {
        await refused(
            service.keys(ADMIN).ListMasked(
                keys_pb2.ListMaskedRequest(parent=parent), timeout=DEADLINE_S
            )
        )
        for parent in ("workspaces/globex", "workspaces/nobody")
    }
    assert len(answers) == 1


async def test_a_certificate_that_names_nobody_is_unauthenticated(service: TestService) -> None:
    """A peer that passed TLS and has no SPIFFE ID reaches no handler."""
    issued = service.ca.issue([])
    stub = keys_pb2_grpc.KeyServiceStub(
        service.channel_as(issued.certificate_pem, issued.private_key_pem)
    )
    code, _, _ = await refused(
        stub.ListMasked(keys_pb2.ListMaskedRequest(parent=PARENT), timeout=DEADLINE_S)
    )
    assert code is grpc.StatusCode.UNAUTHENTICATED
