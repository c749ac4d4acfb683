"""Certificates, trust roots and policies that change while a whole service serves."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fixtures.agent import Agent, message_body, reason_of, status_of
from fixtures.server import ADMIN, AGENT, AUDITOR, PARENT, STRANGER, TestService, spiffe
from ironwork.keys.v1 import audit_pb2, keys_pb2
from ironwork_server.access import reload
from ironwork_server.app.devpki import DevCa, Issued, write_private
from ironwork_simulator import Behaviour, Match

DEADLINE_S = 30.0
SERVING = health_pb2.HealthCheckResponse.SERVING


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Ask again until it is so; each time is a call of the service, so nothing spins idly."""
    async with asyncio.timeout(DEADLINE_S):
        while not await true():
            pass


async def reloads(service: TestService, operation: str) -> list[dict[str, Any]]:
    """The audit log's events of this operation."""
    page = await service.audit().ListEntries(
        audit_pb2.ListEntriesRequest(operation=operation), timeout=DEADLINE_S
    )
    return [json.loads(entry.event) for entry in page.entries]


async def recorded(service: TestService, operation: str, status: str) -> None:
    """Wait for an event of this operation with this status."""

    async def found() -> bool:
        return any(event["status"] == status for event in await reloads(service, operation))

    await until(found)


async def served_serial(service: TestService, folder: Path) -> int:
    """The serial number of the certificate that a new handshake is shown."""
    issued = service.ca.client_certificate(spiffe(ADMIN))
    certificate, key = folder / "probe.pem", folder / "probe-key.pem"
    issued.write(certificate, key)
    context = ssl.create_default_context(cadata=service.ca.certificate_pem.decode())
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(certificate, key)
    _, writer = await asyncio.open_connection(
        "127.0.0.1", service.service.port, ssl=context, server_hostname="localhost"
    )
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    # Aborted rather than closed: this probe speaks no HTTP/2, and waits for no goodbye.
    writer.transport.abort()
    return x509.load_der_x509_certificate(shown).serial_number


def serial(issued: Issued) -> int:
    return x509.load_pem_x509_certificate(issued.certificate_pem).serial_number


async def may_connect(service: TestService, ca: DevCa) -> bool:
    """Whether a new connection with a key-admin's certificate of this CA is accepted."""
    issued = ca.client_certificate(spiffe(ADMIN))
    credentials = grpc.ssl_channel_credentials(
        service.ca.certificate_pem, issued.private_key_pem, issued.certificate_pem
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(service.target, credentials, options) as channel:
        return await health(channel) == SERVING


async def health(channel: grpc.aio.Channel) -> int | None:
    """What health says; None where there is no connection."""
    try:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=DEADLINE_S
        )
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return None
        raise
    return int(answer.status)


async def listing(service: TestService, path: str) -> str:
    """Whether this identity may list the workspace's keys: OK, or why not."""
    try:
        await service.keys(path).ListMasked(
            keys_pb2.ListMaskedRequest(parent=PARENT), timeout=DEADLINE_S
        )
    except grpc.aio.AioRpcError as error:
        return reason_of(status_of(error))
    return "OK"


async def opened(service: TestService) -> Agent:
    """A workspace with a key, and an open stream that has served a call."""
    await service.add()
    agent = Agent(service.keys(AGENT), deadline_s=100)
    await agent.start()
    await expect_served(agent)
    return agent


async def expect_served(agent: Agent) -> None:
    assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED


def test_changes_are_seen_within_a_second() -> None:
    """The files are looked at several times a second, so that a grant or a revocation takes effect
    within one.
    """
    assert reload.POLL_S * 2 <= 0.5
    assert reload.PATIENCE_POLLS * reload.POLL_S <= 0.5, "a broken file is loud as soon"


async def test_a_new_server_certificate_is_shown_at_the_next_handshake(
    service: TestService, tmp_path: Path
) -> None:
    """A renewed certificate and key need no restart; open streams live on with the old one."""
    agent = await opened(service)
    before = await served_serial(service, tmp_path)
    renewed = service.ca.server_certificate()
    renewed.write(service.settings.tls.certificate, service.settings.tls.private_key)

    async def shown() -> bool:
        return await served_serial(service, tmp_path) == serial(renewed)

    await until(shown)
    assert before != serial(renewed)
    await recorded(service, "certificate.reload", "Success")
    await expect_served(agent)
    await agent.close()


async def ended(agent: Agent) -> str:
    """Why the stream was ended."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        async with asyncio.timeout(DEADLINE_S):
            await agent.read()
    return reason_of(status_of(error.value))


async def test_a_client_ca_that_is_taken_out_ends_what_its_clients_have_open(
    service: TestService,
) -> None:
    """A replaced trust root lets its own clients in; what the old one's have open ends: an answer
    that streams, an idle stream, a unary call in flight, a watch; and no new call is taken.
    """
    idle = await opened(service)
    agent, admin = Agent(service.keys(AGENT), deadline_s=100), service.keys(ADMIN)
    hold = service.simulator.hold()
    await agent.start()
    service.simulator.script(None, Behaviour(hold=hold.name, hold_at="body", hold_after=2))
    await agent.begin(body=message_body(stream=True))
    assert (await agent.read()).WhichOneof("message") == "head"
    late = service.simulator.hold()
    service.simulator.script(Match(path="/v1/models*"), Behaviour(hold=late.name))
    request = keys_pb2.AddKeyRequest(parent=PARENT, api_key=service.simulator.make_key().encode())
    asked = len(service.simulator.requests) + 1
    adding = admin.AddKey(request, timeout=DEADLINE_S)
    auditor = service.channel(AUDITOR)
    watch = health_pb2_grpc.HealthStub(auditor).Watch(health_pb2.HealthCheckRequest(), timeout=100)
    assert (await watch.read()).status == SERVING
    await service.simulator.wait_for_request(asked)

    successor = DevCa.create()
    assert not await may_connect(service, successor)
    write_private(service.settings.tls.client_ca, successor.certificate_pem)

    answer = await agent.answer()
    assert answer.end.outcome == keys_pb2.OUTCOME_CANCELLED
    assert answer.reason == "CERTIFICATE_UNTRUSTED"
    assert await ended(agent) == "CERTIFICATE_UNTRUSTED"
    assert await ended(idle) == "CERTIFICATE_UNTRUSTED"
    with pytest.raises(grpc.aio.AioRpcError) as unary:
        await adding
    assert reason_of(status_of(unary.value)) == "CERTIFICATE_UNTRUSTED"
    assert await watch.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.aio.AioRpcError) as again:
        await health(auditor)
    assert again.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert await may_connect(service, successor)
    assert not await may_connect(service, service.ca)


async def test_a_revoked_grant_ends_a_unary_call_in_flight(service: TestService) -> None:
    """A key admin whose grant is taken while Anthropic is asked adds nothing."""
    hold = service.simulator.hold()
    service.simulator.script(Match(path="/v1/models*"), Behaviour(hold=hold.name))
    request = keys_pb2.AddKeyRequest(parent=PARENT, api_key=service.simulator.make_key().encode())
    adding = service.keys(ADMIN).AddKey(request, timeout=DEADLINE_S)
    await service.simulator.wait_for_request(1)
    (service.settings.policy.folder / "stop.cedar").write_text(
        f'forbid (principal == Ironwork::Principal::"{spiffe(ADMIN)}", action, resource);',
        encoding="utf-8",
    )
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await adding
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    page = await service.audit().ListEntries(
        audit_pb2.ListEntriesRequest(operation="AddKey"), timeout=DEADLINE_S
    )
    assert b"PERMISSION_DENIED" in page.entries[-1].event, "the outcome is on record"


async def test_both_cas_may_be_trusted_while_one_replaces_the_other(service: TestService) -> None:
    """Trust roots overlap in one file, so that clients can be moved one by one."""
    successor = DevCa.create()
    both = service.ca.certificate_pem + successor.certificate_pem
    write_private(service.settings.tls.client_ca, both)

    async def accepted() -> bool:
        return await may_connect(service, successor)

    await until(accepted)
    assert await may_connect(service, service.ca)


AUDITORS_MAY_LIST = """
permit (
  principal in Ironwork::Role::"auditor",
  action == Ironwork::Action::"ListMasked",
  resource == Ironwork::Workspace::"acme"
);
"""


async def test_a_grant_takes_effect_while_serving(service: TestService) -> None:
    """A policy that is added grants at once, and denies again when it is gone; who was not named
    gains nothing; each change is on record with the policies' version.
    """
    policy = service.settings.policy.folder / "auditors.cedar"
    assert await listing(service, AUDITOR) == "PERMISSION_DENIED"
    policy.write_text(AUDITORS_MAY_LIST, encoding="utf-8")

    async def granted() -> bool:
        return await listing(service, AUDITOR) == "OK"

    await until(granted)
    assert await listing(service, STRANGER) == "PERMISSION_DENIED"
    policy.unlink()

    async def denied() -> bool:
        return await listing(service, AUDITOR) == "PERMISSION_DENIED"

    await until(denied)

    async def both() -> bool:
        return len(await reloads(service, "policy.reload")) == 2

    await until(both)
    events = await reloads(service, "policy.reload")
    versions = [json.dumps(event) for event in events]
    assert {event["status"] for event in events} == {"Success"}
    assert versions[0] != versions[1]
    assert {event["class_uid"] for event in events} == {3004}, "Entity Management"


async def test_a_stream_gains_nothing_before_it_may_be_opened(service: TestService) -> None:
    """A new grant of WithKey opens streams, and its revocation ends the ones that it opened."""
    await service.add()
    policy = service.settings.policy.folder / "spies.cedar"
    policy.write_text(
        'permit (principal == Ironwork::Principal::"' + spiffe(STRANGER) + '",'
        ' action == Ironwork::Action::"WithKey", resource == Ironwork::Workspace::"acme");',
        encoding="utf-8",
    )
    spy: list[Agent] = []

    async def let_in() -> bool:
        agent = Agent(service.keys(STRANGER), PARENT, deadline_s=100)
        try:
            await agent.start()
        except grpc.aio.AioRpcError:
            return False
        spy.append(agent)
        return True

    await until(let_in)
    await expect_served(spy[0])
    policy.unlink()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async with asyncio.timeout(DEADLINE_S):
            await spy[0].read()
    assert ended.value.code() is grpc.StatusCode.PERMISSION_DENIED


def broken_certificate(service: TestService) -> tuple[Path, bytes]:
    return service.settings.tls.certificate, b"-----BEGIN CERTIFICATE-----\nnot one\n"


def foreign_key(service: TestService) -> tuple[Path, bytes]:
    return service.settings.tls.private_key, DevCa.create().server_certificate().private_key_pem


def empty_client_ca(service: TestService) -> tuple[Path, bytes]:
    return service.settings.tls.client_ca, b""


def leaf_as_client_ca(service: TestService) -> tuple[Path, bytes]:
    return service.settings.tls.client_ca, service.ca.server_certificate().certificate_pem


def broken_policy(service: TestService) -> tuple[Path, bytes]:
    return service.settings.policy.folder / "roles.cedar", b"permit (oops"


def empty_policy(service: TestService) -> tuple[Path, bytes]:
    return service.settings.policy.folder / "roles.cedar", b"// nothing\n"


@pytest.mark.parametrize(
    ("spoil", "operation"),
    [
        (broken_certificate, "certificate.reload"),
        (foreign_key, "certificate.reload"),
        (empty_client_ca, "certificate.reload"),
        (leaf_as_client_ca, "certificate.reload"),
        (broken_policy, "policy.reload"),
        (empty_policy, "policy.reload"),
    ],
)
async def test_broken_files_change_nothing_and_are_loud(
    service: TestService,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[TestService], tuple[Path, bytes]],
    operation: str,
) -> None:
    """A file that cannot be used keeps the old one in force for everybody, is recorded and logged,
    leaves health alone, and is forgotten when it is mended.
    """
    agent = await opened(service)
    before = await served_serial(service, tmp_path)
    path, content = spoil(service)
    good = path.read_bytes()
    write_private(path, content)
    await recorded(service, operation, "Failure")
    assert [record.msg for record in caplog.records].count("reload.failed") == 1
    assert await served_serial(service, tmp_path) == before
    assert await may_connect(service, service.ca), "and SERVING"
    assert await listing(service, ADMIN) == "OK"
    assert await listing(service, AUDITOR) == "PERMISSION_DENIED"
    await expect_served(agent)
    write_private(path, good)
    renewed = service.ca.server_certificate()
    renewed.write(service.settings.tls.certificate, service.settings.tls.private_key)

    async def shown() -> bool:
        return await served_serial(service, tmp_path) == serial(renewed)

    await until(shown)
    await expect_served(agent)
    await agent.close()
