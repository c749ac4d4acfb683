"""The WithKey stream's grammar and refusals, on a whole service."""

from __future__ import annotations

import grpc
import pytest

from fixtures.agent import HEADERS, Agent, message_body, reason_of, status_of
from fixtures.server import AGENT, PARENT, TestService
from ironwork.keys.v1 import keys_pb2


async def refusal(agent: Agent) -> tuple[grpc.StatusCode, str]:
    """The code and reason with which the stream ends."""
    try:
        while True:
            await agent.read()
    except grpc.aio.AioRpcError as ended:
        return ended.code(), reason_of(status_of(ended))


START = {"start": keys_pb2.Start(parent=PARENT)}
HEAD = {"head": keys_pb2.RequestHead(call=1, method="GET", path="/v1/models")}
POST = {"head": keys_pb2.RequestHead(call=1, method="POST", path="/v1/messages")}
BODY = {"body": keys_pb2.RequestBody(data=b"x")}
END = {"end": keys_pb2.RequestEnd()}
BIG = {"body": keys_pb2.RequestBody(data=b"x" * 16385)}


@pytest.mark.parametrize(
    "messages",
    [
        [HEAD],
        [{"cancel": keys_pb2.Cancel(call=1)}],
        [{}],
        [START, START],
        [START, {}],
        [START, BODY],
        [START, END],
        [START, POST, POST],
        [START, POST, BIG],
        [START, {"head": keys_pb2.RequestHead(call=0, method="GET", path="/v1/models")}],
    ],
    ids=lambda messages: "-".join(next(iter(m), "nothing") for m in messages),
)
async def test_a_message_out_of_turn_ends_the_stream(
    service: TestService, messages: list[dict[str, object]]
) -> None:
    """Whatever the grammar does not allow ends the RPC with STREAM_GRAMMAR."""
    agent = Agent(service.keys(AGENT))
    for message in messages:
        await agent.send(**message)
    assert await refusal(agent) == (grpc.StatusCode.INVALID_ARGUMENT, "STREAM_GRAMMAR")


async def test_call_numbers_grow(service: TestService) -> None:
    """A number that was used before ends the stream."""
    await service.add()
    agent = Agent(service.keys(AGENT))
    await agent.start()
    assert (await agent.call("GET", "/v1/models")).head is not None
    agent.number -= 1
    await agent.begin("GET", "/v1/models")
    assert await refusal(agent) == (grpc.StatusCode.INVALID_ARGUMENT, "STREAM_GRAMMAR")


async def test_a_client_need_not_wait_for_started(service: TestService) -> None:
    """Start, head and body may leave in one flush."""
    await service.add()
    agent = Agent(service.keys(AGENT))
    await agent.send(**START)
    await agent.begin(body=message_body())
    answer = await agent.answer()
    assert answer.end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"path": "/v1/organizations/me"}, "PATH_NOT_ALLOWED"),
        ({"path": "/v1/messages/../organizations"}, "PATH_MALFORMED"),
        ({"method": "PUT"}, "METHOD_NOT_ALLOWED"),
        ({"headers": (*HEADERS, ("x-api-key", b"sk-ant-api03-mine"))}, "HEADER_REFUSED"),
        ({"headers": (*HEADERS, ("Authorization", b"Bearer x"))}, "HEADER_REFUSED"),
        ({"headers": (*HEADERS, ("Transfer-Encoding", b"chunked"))}, "HEADER_REFUSED"),
        ({"headers": (*HEADERS, ("Content-Length", b"5"))}, "HEADER_REFUSED"),
        ({"headers": (*HEADERS, ("Host", b"evil.example"))}, "HEADER_REFUSED"),
        ({"headers": (*HEADERS, ("cookie", b"a=b"))}, "HEADER_REFUSED"),
        ({"headers": (*HEADERS, ("x-a", b"b\r\nx-api-key: c"))}, "HEADER_MALFORMED"),
        ({"query": "a b"}, "QUERY_MALFORMED"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
async def test_a_refused_request_leaves_the_stream_usable(
    service: TestService, request_: dict[str, object], reason: str
) -> None:
    """What screening refuses is sent nowhere, says why without the value, and costs one call."""
    await service.add()
    service.simulator.clear()
    agent = Agent(service.keys(AGENT))
    await agent.start()
    answer = await agent.call(**({"body": message_body()} | request_))  # type: ignore[arg-type]
    assert (answer.end.outcome, answer.end.sent_upstream) == (keys_pb2.OUTCOME_REFUSED, False)
    assert answer.reason == reason
    assert "mine" not in str(answer.end)
    assert len(service.simulator.requests) == 0
    assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()


async def test_a_body_where_none_belongs_is_refused(service: TestService) -> None:
    """A GET with a body is refused before anything is sent."""
    await service.add()
    agent = Agent(service.keys(AGENT))
    await agent.start()
    answer = await agent.call("GET", "/v1/models", b"{}", chunked=True)
    assert answer.reason == "BODY_LENGTH_MISMATCH"
    assert answer.end.outcome == keys_pb2.OUTCOME_REFUSED
    await agent.close()


@pytest.mark.parametrize("length", [3, 300])
async def test_a_body_of_another_length_is_refused(service: TestService, length: int) -> None:
    """The server enforces the length that the client announced."""
    await service.add()
    agent = Agent(service.keys(AGENT))
    await agent.start()
    agent.number = 1
    head = keys_pb2.RequestHead(call=1, method="POST", path="/v1/messages", content_length=length)
    await agent.send(head=head)
    await agent.send(body=keys_pb2.RequestBody(data=message_body()))
    await agent.send(end=keys_pb2.RequestEnd())
    answer = await agent.answer()
    assert answer.reason == "BODY_LENGTH_MISMATCH"
    assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()


async def test_a_stream_closed_during_an_upload_fails_the_call(service: TestService) -> None:
    """Half-closing before the request's end is no way to end it."""
    await service.add()
    agent = Agent(service.keys(AGENT))
    await agent.start()
    await agent.send(**POST)
    await agent.send(**BODY)
    await agent.stream.done_writing()
    answer = await agent.answer()
    assert answer.reason == "UPLOAD_BROKEN"


async def test_two_streams_serve_two_requests_at_once(service: TestService) -> None:
    """One stream's call does not wait for another's."""
    await service.add()
    hold = service.simulator.hold()
    from ironwork_simulator import Behaviour

    service.simulator.script(None, Behaviour(hold=hold.name))
    first, second = Agent(service.keys(AGENT)), Agent(service.keys(AGENT))
    await first.start()
    await second.start()
    await first.begin(body=message_body())
    await service.simulator.wait_for_request(len(service.simulator.requests) + 1)
    assert (await second.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    hold.release()
    assert (await first.answer()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await first.close()
    await second.close()


async def test_the_whole_api_passes_on_one_stream(service: TestService) -> None:
    """Models, count_tokens, HEAD and messages with and without streaming, in turn."""
    await service.add()
    agent = Agent(service.keys(AGENT))
    await agent.start()
    counted = b'{"model":"claude-sonnet-4-5","messages":[{"role":"user","content":"hi"}]}'
    for method, path, body in (
        ("GET", "/v1/models", None),
        ("HEAD", "/v1/models", None),
        ("GET", "/v1/models/claude-sonnet-4-5", None),
        ("POST", "/v1/messages/count_tokens", counted),
        ("POST", "/v1/messages", message_body()),
        ("POST", "/v1/messages", message_body(stream=True)),
    ):
        answer = await agent.call(method, path, body, query="beta=true")
        assert answer.end.outcome == keys_pb2.OUTCOME_COMPLETED, (path, answer.end)
        assert answer.head is not None
        assert answer.head.status == 200
        assert bool(answer.body) is (method != "HEAD")
        names = {header.name.lower() for header in answer.head.headers}
        assert "request-id" in names
        assert not names & {"set-cookie", "transfer-encoding", "connection"}
    assert service.simulator.requests[-1].target == "/v1/messages?beta=true"
    await agent.close()
