"""Who may call what, over real TLS: the handshake, the certificate, the role."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import grpc
import grpc.aio
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fixtures.agent import Agent, reason_of, status_of
from fixtures.server import ADMIN, AGENT, AUDITOR, PARENT, STRANGER, TestService, spiffe
from ironwork.keys.v1 import audit_pb2, audit_pb2_grpc, keys_pb2, keys_pb2_grpc
from ironwork_server.app import grpc_server
from ironwork_server.app.devpki import DevCa, Issued, key_usage
from ironwork_server.rpc import table

CALL_S = 20.0
UNKNOWN_KEY = f"{PARENT}/keys/00000000-0000-4000-8000-000000000000"
GLOBEX = "/workspace/globex/key-admin/mallory"
OK = "OK"
DENIED = "PERMISSION_DENIED"


def uri(name: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(name)


GOOD = spiffe(AGENT)
# What is wrong with a certificate: how it is issued, and the reason that it is refused for.
CERTIFICATES: dict[str, tuple[Callable[[DevCa], Issued], str]] = {
    "DNS look-alike": (lambda ca: ca.issue([x509.DNSName(GOOD)]), "SPIFFE_ID_LOOKALIKE"),
    "DNS look-alike beside another": (
        lambda ca: ca.issue([uri(spiffe(AUDITOR)), x509.DNSName(GOOD)]),
        "SPIFFE_ID_LOOKALIKE",
    ),
    "e-mail look-alike": (lambda ca: ca.issue([x509.RFC822Name(GOOD)]), "SPIFFE_ID_LOOKALIKE"),
    "common name only": (lambda ca: ca.issue([], common_name=GOOD[:64]), "SPIFFE_ID_MISSING"),
    "DNS name only": (lambda ca: ca.issue([x509.DNSName("a.example")]), "SPIFFE_ID_MISSING"),
    "two URIs": (lambda ca: ca.issue([uri(GOOD), uri(spiffe(ADMIN))]), "SPIFFE_ID_AMBIGUOUS"),
    "one URI twice": (lambda ca: ca.issue([uri(GOOD), uri(GOOD)]), "SPIFFE_ID_AMBIGUOUS"),
    "two URIs, one SPIFFE": (
        lambda ca: ca.issue([uri("https://a.example/"), uri(GOOD)]),
        "SPIFFE_ID_AMBIGUOUS",
    ),
    "foreign trust domain": (
        lambda ca: ca.client_certificate(f"spiffe://elsewhere.example{AGENT}"),
        "TRUST_DOMAIN_FOREIGN",
    ),
    "trust domain as a prefix": (
        lambda ca: ca.client_certificate(GOOD.replace("internal", "internal.example")),
        "TRUST_DOMAIN_FOREIGN",
    ),
    "query": (lambda ca: ca.client_certificate(f"{GOOD}?a=b"), "SPIFFE_ID_MALFORMED"),
    "dot segments": (
        lambda ca: ca.client_certificate(spiffe("/workspace/acme/agent/../key-admin/x")),
        "SPIFFE_ID_MALFORMED",
    ),
    "encoded": (
        lambda ca: ca.client_certificate(spiffe("/workspace/acme%2fagent/x")),
        "SPIFFE_ID_MALFORMED",
    ),
    "upper-case scheme": (
        lambda ca: ca.client_certificate(GOOD.replace("spiffe", "SPIFFE")),
        "SPIFFE_ID_MALFORMED",
    ),
    "not SPIFFE": (lambda ca: ca.client_certificate("https://a.example/"), "SPIFFE_ID_MALFORMED"),
    "no rule": (lambda ca: ca.client_certificate(spiffe("/robot/r2")), "IDENTITY_UNMAPPED"),
    "no path": (lambda ca: ca.client_certificate(spiffe("")), "IDENTITY_UNMAPPED"),
    "longer path": (lambda ca: ca.client_certificate(spiffe(f"{AGENT}/x")), "IDENTITY_UNMAPPED"),
    "a CA as leaf": (lambda ca: ca.issue([uri(GOOD)], ca=True), "CERTIFICATE_IS_CA"),
    "signs certificates": (
        lambda ca: ca.issue(
            [uri(GOOD)], usage=key_usage(digital_signature=True, key_cert_sign=True)
        ),
        "CERTIFICATE_KEY_USAGE",
    ),
}

# A string: the stubs' async classes exist for types only. grpc_health ships no types.
Stubs: TypeAlias = (
    "tuple[keys_pb2_grpc.KeyServiceAsyncStub, audit_pb2_grpc.AuditServiceAsyncStub, Any]"
)


def stubs(channel: grpc.aio.Channel) -> Stubs:
    return (
        keys_pb2_grpc.KeyServiceStub(channel),
        audit_pb2_grpc.AuditServiceStub(channel),
        health_pb2_grpc.HealthStub(channel),
    )


async def answer_of(call: Awaitable[object]) -> str:
    """OK, or the reason of the refusal."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return reason_of(status_of(error))
    return OK


# --- one call of each RPC, on the workspace acme: a new RPC fails the tests until it is here -----


async def add_key(stubs: Stubs) -> str:
    return await answer_of(
        stubs[0].AddKey(keys_pb2.AddKeyRequest(parent=PARENT, api_key=b"x"), timeout=CALL_S)
    )


async def list_masked(stubs: Stubs) -> str:
    return await answer_of(
        stubs[0].ListMasked(keys_pb2.ListMaskedRequest(parent=PARENT), timeout=CALL_S)
    )


async def delete_key(stubs: Stubs) -> str:
    return await answer_of(
        stubs[0].DeleteKey(keys_pb2.DeleteKeyRequest(name=UNKNOWN_KEY), timeout=CALL_S)
    )


async def with_key(stubs: Stubs) -> str:
    agent = Agent(stubs[0], PARENT)
    refused = await answer_of(agent.start())
    if refused == OK:
        await agent.close()
    return refused


async def list_entries(stubs: Stubs) -> str:
    return await answer_of(stubs[1].ListEntries(audit_pb2.ListEntriesRequest(), timeout=CALL_S))


async def follow_entries(stubs: Stubs) -> str:
    follow = stubs[1].FollowEntries(audit_pb2.FollowEntriesRequest(), timeout=CALL_S)
    refused = await answer_of(follow.read())
    follow.cancel()
    return refused


async def get_checkpoint(stubs: Stubs) -> str:
    call = stubs[1].GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=CALL_S)
    return past_the_gate(await answer_of(call))


async def get_inclusion_proof(stubs: Stubs) -> str:
    call = stubs[1].GetInclusionProof(audit_pb2.GetInclusionProofRequest(), timeout=CALL_S)
    return past_the_gate(await answer_of(call))


async def get_consistency_proof(stubs: Stubs) -> str:
    call = stubs[1].GetConsistencyProof(audit_pb2.GetConsistencyProofRequest(), timeout=CALL_S)
    return past_the_gate(await answer_of(call))


def past_the_gate(answer: str) -> str:
    """The first checkpoint may be still to come."""
    return OK if answer == "CHECKPOINT_UNAVAILABLE" else answer


async def health_check(stubs: Stubs) -> str:
    return await answer_of(stubs[2].Check(health_pb2.HealthCheckRequest(), timeout=CALL_S))


async def health_watch(stubs: Stubs) -> str:
    watch = stubs[2].Watch(health_pb2.HealthCheckRequest(), timeout=CALL_S)
    refused = await answer_of(watch.read())
    watch.cancel()
    return refused


CALLS = {
    "/ironwork.keys.v1.KeyService/AddKey": add_key,
    "/ironwork.keys.v1.KeyService/ListMasked": list_masked,
    "/ironwork.keys.v1.KeyService/DeleteKey": delete_key,
    "/ironwork.keys.v1.KeyService/WithKey": with_key,
    "/ironwork.keys.v1.AuditService/ListEntries": list_entries,
    "/ironwork.keys.v1.AuditService/FollowEntries": follow_entries,
    "/ironwork.keys.v1.AuditService/GetCheckpoint": get_checkpoint,
    "/ironwork.keys.v1.AuditService/GetInclusionProof": get_inclusion_proof,
    "/ironwork.keys.v1.AuditService/GetConsistencyProof": get_consistency_proof,
    "/grpc.health.v1.Health/Check": health_check,
    "/grpc.health.v1.Health/Watch": health_watch,
}
# In the order of CALLS. What passes the gate is answered by what lies behind it.
ROLES: dict[str, tuple[str, ...]] = {
    ADMIN: ("API_KEY_MALFORMED", OK, "KEY_NOT_FOUND", DENIED, *[DENIED] * 5, OK, OK),
    AGENT: (DENIED, DENIED, DENIED, OK, *[DENIED] * 5, OK, OK),
    AUDITOR: (DENIED, DENIED, DENIED, DENIED, *[OK] * 5, OK, OK),
    STRANGER: (DENIED, DENIED, DENIED, DENIED, *[DENIED] * 5, OK, OK),
    GLOBEX: (DENIED, DENIED, DENIED, DENIED, *[DENIED] * 5, OK, OK),
}


async def test_each_role_may_do_its_own_and_nothing_else(service: TestService) -> None:
    """Every role on every RPC of the table, with the expected answer for each."""
    assert set(CALLS) == set(table.TABLE), "an RPC was added: say here who may call it"
    for path, expected in ROLES.items():
        channel = stubs(service.channel(path))
        answers = {method: await call(channel) for method, call in CALLS.items()}
        assert answers == dict(zip(CALLS, expected, strict=True)), path


def test_the_table_is_the_contract() -> None:
    """The table has a row for each method of the served protos, and no other; and says of each
    whether it streams.
    """
    services = [
        keys_pb2.DESCRIPTOR.services_by_name["KeyService"],
        audit_pb2.DESCRIPTOR.services_by_name["AuditService"],
        health_pb2.DESCRIPTOR.services_by_name["Health"],
    ]
    methods = {
        f"/{service.full_name}/{method.name}": method
        for service in services
        for method in service.methods
    }
    # The health service of newer releases lists too; it is not served here.
    methods.pop("/grpc.health.v1.Health/List", None)
    assert set(table.TABLE) == set(methods)
    for name in methods:
        assert table.TABLE[name].method == name
    open_to_all = {rpc.method for rpc in table.TABLE.values() if rpc.action is None}
    assert open_to_all == {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}


async def refused_by(call: Callable[[], Awaitable[object]]) -> grpc.aio.AioRpcError:
    """How the call ends. Asked again where gRPC's client fails by itself: it may still be sending
    when a stream is refused, and then says so in place of the status.
    """
    for _ in range(5):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call()
        if refused.value.details() != "Internal error from Core":
            break
    return refused.value


async def test_a_method_without_a_row_is_refused(
    start_service: Callable[..., Awaitable[TestService]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that is registered with the server but has no row is never reached, in any of
    gRPC's four shapes; nor is one that does not exist told apart from it.
    """
    reached = []

    async def unary(request: bytes, context: object) -> bytes:
        reached.append(request)
        return b""

    async def stream(request: bytes, context: object) -> AsyncIterator[bytes]:
        reached.append(request)
        yield b""

    handlers = {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(unary),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(stream),
        "StreamUnary": grpc.stream_unary_rpc_method_handler(unary),
        "StreamStream": grpc.stream_stream_rpc_method_handler(stream),
    }
    register = keys_pb2_grpc.add_KeyServiceServicer_to_server

    def register_more(servicer: Any, server: grpc.aio.Server) -> None:
        register(servicer, server)
        generic = grpc.method_handlers_generic_handler("ironwork.keys.v1.Reveal", handlers)
        server.add_generic_rpc_handlers((generic,))

    monkeypatch.setattr(
        grpc_server.keys_pb2_grpc, "add_KeyServiceServicer_to_server", register_more
    )
    service = await start_service()
    channel = service.channel(ADMIN)

    async def one() -> AsyncIterator[bytes]:
        yield b"x"

    async def none() -> AsyncIterator[bytes]:
        return
        yield b""

    def in_each_shape(method: str) -> Sequence[Callable[[], Awaitable[object]]]:
        return (
            lambda: channel.unary_unary(method)(b"x", timeout=CALL_S),
            lambda: channel.unary_stream(method)(b"x", timeout=CALL_S).read(),
            lambda: channel.stream_unary(method)(one(), timeout=CALL_S),
            lambda: channel.stream_stream(method)(one(), timeout=CALL_S).read(),
        )

    for name in (*handlers, "Missing"):
        method = f"/ironwork.keys.v1.Reveal/{name}"
        for call in in_each_shape(method):
            refusal = await refused_by(call)
            assert refusal.code() is grpc.StatusCode.PERMISSION_DENIED
            assert reason_of(status_of(refusal)) == DENIED
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.stream_stream(method)(none(), timeout=CALL_S).read()
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED, "nor is it kept waiting"
    assert reached == []


async def test_certificates_that_name_nobody_are_refused(service: TestService) -> None:
    """A trusted CA's certificate without exactly one acceptable SPIFFE ID is UNAUTHENTICATED, with
    the reason, on every RPC but health; and the audit log says so, in few entries.
    """
    protected = [call for name, call in CALLS.items() if table.TABLE[name].action is not None]
    reasons = []
    for name, (issue, reason) in CERTIFICATES.items():
        issued = issue(service.ca)
        channel = stubs(service.channel_as(issued.certificate_pem, issued.private_key_pem))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel[0].ListMasked(keys_pb2.ListMaskedRequest(parent=PARENT), timeout=CALL_S)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED, name
        assert {await call(channel) for call in protected} == {reason}, name
        assert await health_check(channel) == OK, name
        assert await health_watch(channel) == OK, name
        reasons.append(reason)
    events = await refusals(service, set(reasons))
    assert all(event["class_uid"] == 3002 for event in events), "Authentication, OCSF 1.6.0"
    assert len(events) <= 2 * len(set(reasons)), "120 refusals are few entries"


async def refusals(service: TestService, reasons: set[str]) -> list[dict[str, Any]]:
    """The log's entries about refused peers, once there is one for every reason."""
    auditor = service.audit()
    request = audit_pb2.ListEntriesRequest(operation="auth.refused")
    async with asyncio.timeout(CALL_S):
        # The log's reader has no event to wait for; each look is an RPC.
        while True:
            page = await auditor.ListEntries(request)
            events = [json.loads(entry.event) for entry in page.entries]
            text = json.dumps(events)
            if all(reason in text for reason in reasons):
                return events


async def test_without_a_trusted_certificate_there_is_no_connection(service: TestService) -> None:
    """No client certificate, an unknown CA's, or another's key: the handshake fails, also for
    health.
    """
    stranger = DevCa.create()
    foreign = stranger.client_certificate(spiffe(ADMIN))
    roots = service.ca.certificate_pem
    for credentials in (
        grpc.ssl_channel_credentials(roots),
        grpc.ssl_channel_credentials(roots, foreign.private_key_pem, foreign.certificate_pem),
    ):
        async with grpc.aio.secure_channel(
            service.target, credentials, [("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            await expect_no_connection(channel)
    async with grpc.aio.insecure_channel(service.target) as plain:
        await expect_no_connection(plain)


async def expect_no_connection(channel: grpc.aio.Channel) -> None:
    """Not even health, which asks for no identity, can be reached."""
    health = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await health.Check(health_pb2.HealthCheckRequest(), timeout=CALL_S)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


# --- what is forbidden and what does not exist -------------------------------------------------


Outcome = tuple[grpc.StatusCode, str | None, tuple[tuple[str, str | bytes], ...]]


async def outcome(call: Awaitable[object]) -> Outcome:
    """All that a caller can see of a refusal."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    error = refused.value
    metadata = tuple(
        (name, value)
        for name, value in (*(error.initial_metadata() or ()), *(error.trailing_metadata() or ()))
    )
    return error.code(), error.details(), metadata


@pytest.mark.parametrize(
    "path", [GLOBEX, STRANGER, AGENT, AUDITOR], ids=lambda p: p.rpartition("/")[0]
)
async def test_foreign_and_missing_answer_alike(service: TestService, path: str) -> None:
    """Who may not do a thing learns nothing by trying: a workspace or key that exists and one that
    does not give the same bytes, whichever the RPC, as does a name that cannot be.
    """
    added = await service.add()
    mine = path.split("/")[2] if path.startswith("/workspace/") else ""
    keys = service.keys(path)
    exists, missing = PARENT, "workspaces/nobody"
    unary: list[tuple[Callable[[str], Awaitable[object]], list[str]]] = [
        (
            lambda name: keys.AddKey(
                keys_pb2.AddKeyRequest(parent=name, api_key=b"x"), timeout=CALL_S
            ),
            [exists, missing],
        ),
        (
            lambda name: keys.ListMasked(keys_pb2.ListMaskedRequest(parent=name), timeout=CALL_S),
            [exists, missing],
        ),
        (
            lambda name: keys.DeleteKey(keys_pb2.DeleteKeyRequest(name=name), timeout=CALL_S),
            [added.name, UNKNOWN_KEY, UNKNOWN_KEY.replace("acme", "nobody")],
        ),
    ]
    seen: set[Outcome] = set()
    for call, names in unary:
        seen |= {await outcome(call(name)) for name in names}
    foreign = [missing] if mine == "acme" else [exists, missing]
    for name in foreign:
        seen.add(await outcome(Agent(keys, name).start()))
    if path != GLOBEX:
        # A role that may not do it in its own workspace either is not told what is malformed.
        seen |= {await outcome(call("nonsense")) for call, _ in unary}
    ((code, details, metadata),) = seen
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert details == "This identity may not do that, or it does not exist."
    assert len(metadata) == 1, "the status' details and nothing more"


async def test_an_unknown_key_of_the_own_workspace_is_not_found(service: TestService) -> None:
    """Inside their own workspace key-admins are told, and a key of another's is none of theirs."""
    foreign = await service.add(parent="workspaces/globex")
    keys = service.keys()
    own = foreign.name.replace("globex", "acme")
    answers = {
        await outcome(keys.DeleteKey(keys_pb2.DeleteKeyRequest(name=name), timeout=CALL_S))
        for name in (UNKNOWN_KEY, own)
    }
    ((code, _, _),) = answers
    assert code is grpc.StatusCode.NOT_FOUND
