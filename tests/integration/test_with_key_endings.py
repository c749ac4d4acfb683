"""How calls and streams end: cancelled, cut, revoked, expired, drained, stalled."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from fixtures.agent import Agent, message_body, reason_of, status_of
from fixtures.server import AGENT, StartService, TestService
from ironwork.keys.v1 import keys_pb2
from ironwork_server.rpc import with_key
from ironwork_simulator import Behaviour


async def held_call(service: TestService, agent: Agent) -> int:
    """Begin a streamed message that stays open after its first event; its request's number."""
    hold = service.simulator.hold()
    service.simulator.script(None, Behaviour(hold=hold.name, hold_at="body", hold_after=2))
    number = len(service.simulator.requests) + 1
    await agent.begin(body=message_body(stream=True))
    message = await agent.read()
    assert message.WhichOneof("message") == "head"
    assert (await agent.read()).WhichOneof("message") == "body"
    await service.simulator.wait_for_request(number)
    return number


async def opened(service: TestService) -> Agent:
    """A workspace with a key, and an open stream."""
    await service.add()
    agent = Agent(service.keys(AGENT))
    await agent.start()
    return agent


async def test_cancel_reaches_anthropic_and_the_stream_stays_usable(service: TestService) -> None:
    """A cancelled call closes its upstream connection; the next call is served."""
    agent = await opened(service)
    number = await held_call(service, agent)
    await agent.send(cancel=keys_pb2.Cancel(call=agent.number))
    answer = await agent.answer()
    assert (answer.end.outcome, answer.reason) == (keys_pb2.OUTCOME_CANCELLED, "CLIENT_CANCELLED")
    assert answer.end.sent_upstream
    await service.simulator.disconnected(number)
    assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()


async def test_a_cancel_for_a_finished_call_is_ignored(service: TestService) -> None:
    """A Cancel that comes too late, or for a call that never was, changes nothing."""
    agent = await opened(service)
    await agent.message()
    await agent.send(cancel=keys_pb2.Cancel(call=agent.number))
    await agent.send(cancel=keys_pb2.Cancel(call=77))
    assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()


async def test_a_disconnect_reaches_anthropic(service: TestService) -> None:
    """An agent that goes away closes the upstream connection, and the log says so."""
    agent = await opened(service)
    number = await held_call(service, agent)
    agent.stream.cancel()
    await service.simulator.disconnected(number)


async def test_an_upstream_cut_is_never_a_clean_end(service: TestService) -> None:
    """An answer that breaks off ends as FAILED, also for EOF and for chunked framing."""
    agent = await opened(service)
    for cut in ("content_length", "chunked", "mid_chunk", "reset", "close_before_head"):
        service.simulator.script(None, Behaviour(cut=cut))  # type: ignore[arg-type]
        answer = await agent.message(stream=cut != "content_length")
        assert answer.end.outcome == keys_pb2.OUTCOME_FAILED, cut
        assert answer.end.sent_upstream
    assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()


async def test_a_redirect_is_an_error(service: TestService) -> None:
    """A 3xx from upstream is not followed and not delivered."""
    agent = await opened(service)
    service.simulator.script(None, Behaviour(status=307, location="https://evil.example/"))
    answer = await agent.message()
    assert (answer.head, answer.reason) == (None, "UPSTREAM_REDIRECT")
    await agent.close()


async def test_anthropics_errors_pass_unchanged(service: TestService) -> None:
    """Every error status arrives with its body and retry-after, as a completed call."""
    agent = await opened(service)
    for status in (400, 401, 402, 403, 404, 413, 429, 500, 504, 529):
        service.simulator.script(None, Behaviour(status=status, retry_after_s=7))
        answer = await agent.message()
        assert answer.head is not None
        assert answer.head.status == status
        assert answer.end.outcome == keys_pb2.OUTCOME_COMPLETED
        assert b'"type"' in answer.body
        assert ("retry-after", b"7") in {(h.name.lower(), h.value) for h in answer.head.headers}
    await agent.close()


async def test_an_error_in_mid_stream_passes_unchanged(service: TestService) -> None:
    """An `event: error` after a 200 is part of the answer."""
    agent = await opened(service)
    service.simulator.script(None, Behaviour(error_after=3))
    answer = await agent.message(stream=True)
    assert b"event: error" in answer.body
    assert answer.end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()


async def test_an_answer_that_comes_during_the_upload_is_delivered(service: TestService) -> None:
    """A 413 is delivered while the client is still uploading; its rest is discarded."""
    agent = await opened(service)
    service.simulator.script(None, Behaviour(status=413, early=True))
    agent.number = 1
    size = 2_000_000
    head = keys_pb2.RequestHead(
        call=1,
        method="POST",
        path="/v1/messages",
        headers=[keys_pb2.Header(name="anthropic-version", value=b"2023-06-01")],
        content_length=size,
    )
    await agent.send(head=head)
    await agent.send(body=keys_pb2.RequestBody(data=b"x" * 1000))
    answer = await agent.answer()
    assert answer.head is not None
    assert answer.head.status == 413
    for _ in range(20):
        await agent.send(body=keys_pb2.RequestBody(data=b"x" * 16000))
    await agent.send(end=keys_pb2.RequestEnd())
    assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()


async def test_deletion_can_end_what_is_in_flight(service: TestService) -> None:
    """DeleteKey with cancel_in_flight ends the responses that the key serves."""
    agent = await opened(service)
    number = await held_call(service, agent)
    (key,) = (
        await service.keys().ListMasked(keys_pb2.ListMaskedRequest(parent="workspaces/acme"))
    ).keys
    answer = await service.keys().DeleteKey(
        keys_pb2.DeleteKeyRequest(name=key.name, cancel_in_flight=True)
    )
    assert answer.cancelled_requests == 1
    ended = await agent.answer()
    assert (ended.end.outcome, ended.reason) == (keys_pb2.OUTCOME_CANCELLED, "KEY_DELETED")
    await service.simulator.disconnected(number)
    await agent.close()


async def test_a_revoked_policy_ends_an_open_stream(service: TestService) -> None:
    """When the grant goes, what is in flight is cancelled and the stream ends."""
    agent = await opened(service)
    number = await held_call(service, agent)
    revoke(service.folder)
    answer = await agent.answer()
    assert (answer.end.outcome, answer.reason) == (keys_pb2.OUTCOME_CANCELLED, "GRANT_REVOKED")
    await service.simulator.disconnected(number)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await agent.read()
    assert ended.value.code() is grpc.StatusCode.PERMISSION_DENIED


def revoke(folder: Path) -> None:
    """Forbid WithKey to everybody."""
    policy = folder / "policy" / "revoked.cedar"
    policy.write_text(
        'forbid (principal, action == Ironwork::Action::"WithKey", resource);', encoding="utf-8"
    )


async def test_a_broken_policy_file_changes_nothing(service: TestService) -> None:
    """A policy that does not parse is loud, and the old ones stay in force."""
    agent = await opened(service)
    (service.folder / "policy" / "broken.cedar").write_text("permit (oops", encoding="utf-8")
    from ironwork.keys.v1 import audit_pb2

    request = audit_pb2.ListEntriesRequest(operation="policy.reload")
    auditor = service.audit()
    async with asyncio.timeout(20):
        # The log's reader has no event to wait for; each look is an RPC.
        while not (await auditor.ListEntries(request)).entries:
            pass
    assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()


async def test_an_expired_certificate_ends_the_stream(service: TestService) -> None:
    """A call in flight is cancelled when its client's certificate expires."""
    await service.add()
    agent = Agent(service.keys(AGENT, lifetime=timedelta(seconds=4)))
    await agent.start()
    number = await held_call(service, agent)
    answer = await agent.answer()
    assert (answer.end.outcome, answer.reason) == (
        keys_pb2.OUTCOME_CANCELLED,
        "CERTIFICATE_EXPIRED",
    )
    assert agent.go_away is not None
    assert agent.go_away.reason == keys_pb2.GoAway.REASON_CERTIFICATE_EXPIRY
    await service.simulator.disconnected(number)


async def test_an_old_stream_is_asked_to_reconnect(start_service: StartService) -> None:
    """At its greatest age a stream gets GoAway, refuses new calls unsent, and then ends."""
    service = await start_service(streams={"age_s": 0.5})
    agent = await opened(service)
    message = await agent.read()
    assert message.go_away.reason == keys_pb2.GoAway.REASON_STREAM_AGE
    answer = await agent.message()
    assert (answer.end.outcome, answer.reason) == (keys_pb2.OUTCOME_REFUSED, "STREAM_CLOSING")
    assert not answer.end.sent_upstream
    with pytest.raises(AssertionError, match="has ended"):
        await agent.read()


async def test_draining_lets_a_call_finish(start_service: StartService) -> None:
    """SIGTERM's drain asks the client to reconnect, and what is in flight completes."""
    service = await start_service()
    agent = await opened(service)
    hold = service.simulator.hold()
    service.simulator.script(None, Behaviour(hold=hold.name, hold_at="body", hold_after=2))
    await agent.begin(body=message_body(stream=True))
    assert (await agent.read()).WhichOneof("message") == "head"
    stopping = asyncio.create_task(service.service.stop())
    while (message := await agent.read()).WhichOneof("message") != "go_away":
        pass
    assert message.go_away.reason == keys_pb2.GoAway.REASON_DRAIN
    hold.release()
    assert (await agent.answer()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()
    await stopping


async def test_draining_ends_what_does_not_finish(start_service: StartService) -> None:
    """After the grace period a call that is still in flight is ended, with a reason."""
    service = await start_service(drain_s=0.3)
    agent = await opened(service)
    number = await held_call(service, agent)
    await service.service.stop()
    await service.simulator.disconnected(number)


async def test_an_upload_that_stalls_is_ended(start_service: StartService) -> None:
    """A body that stops arriving ends its call."""
    service = await start_service(streams={"upload_stall_s": 0.2})
    agent = await opened(service)
    await agent.send(
        head=keys_pb2.RequestHead(call=1, method="POST", path="/v1/messages", content_length=10)
    )
    answer = await agent.answer()
    assert answer.reason == "UPLOAD_STALLED"


async def test_a_client_that_never_reads_is_let_go(start_service: StartService) -> None:
    """A stream whose client takes nothing is ended after the stated time, and its upstream too."""
    service = await start_service(streams={"write_stall_s": 0.5})
    agent = await opened(service)
    # More than the client's own window holds.
    service.simulator.script(None, Behaviour(body="x" * 24_000_000, drip=65536))
    number = len(service.simulator.requests) + 1
    await agent.begin(body=message_body(stream=True))
    await service.simulator.disconnected(number, timeout_s=60)


async def test_a_client_that_says_nothing_is_let_go(
    service: TestService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first message has a deadline."""
    original = with_key.StreamSettings.__dataclass_fields__["start_s"]
    assert original.default <= 60
    agent = Agent(service.keys(AGENT))
    await agent.stream.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await agent.read()
    assert reason_of(status_of(ended.value)) == "STREAM_GRAMMAR"
