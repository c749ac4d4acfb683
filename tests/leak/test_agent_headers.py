"""What an agent may not say in a request's head, shown at the wire."""

from __future__ import annotations

import pytest

from fixtures.agent import HEADERS, Agent, message_body
from fixtures.server import AGENT, TestService
from ironwork.keys.v1 import keys_pb2

REFUSED = (
    # credentials and cookies
    "x-api-key",
    "authorization",
    "proxy-authorization",
    "cookie",
    "cookie2",
    # framing, and what belongs to one connection
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "proxy-connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "http2-settings",
    # what would make another request of it, or speak for somebody else
    "x-http-method-override",
    "x-original-url",
    "x-rewrite-url",
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-real-ip",
)
MALFORMED_NAMES = (
    "x-api-key ",
    " x-api-key",
    "x-api-key:",
    "x-api-key\t",
    "x-api-key\r\nx-a",
    "\nx-api-key",
    "x-a: b\r\nx-api-key",
    "x-api-kеy",  # a Cyrillic е
    "x\x00y",
    ":authority",
    "",
)
MALFORMED_VALUES = (
    b"a\r\nx-api-key: mine",
    b"a\nhost: evil.example",
    b"a\rb",
    b"a\x00b",
    b"a\r\n\r\nGET / HTTP/1.1",
    b"\r\n",
    b"a\x0bb",
    b" a",
    b"a\t",
)
MINE = b"sk-ant-api03-of-my-own"


def spellings(name: str) -> set[str]:
    """The ways in which servers read one name."""
    return {name, name.upper(), name.title(), name.swapcase(), name.replace("-", "_")}


async def opened(service: TestService) -> tuple[Agent, str]:
    """A workspace with a key, an open stream, and the key."""
    key = service.simulator.make_key()
    await service.add(key)
    service.simulator.clear()
    agent = Agent(service.keys(AGENT), deadline_s=60)
    await agent.start()
    return agent, key


async def test_credentials_and_framing_are_refused_in_every_spelling(service: TestService) -> None:
    """A header that the service writes itself is refused by name, nothing is sent upstream, and
    the stream stays usable.
    """
    agent, _ = await opened(service)
    for name in REFUSED:
        for spelling in sorted(spellings(name)):
            answer = await agent.call(
                body=message_body(), headers=[*HEADERS, (spelling, MINE), ("x-after", b"1")]
            )
            assert (answer.end.outcome, answer.reason) == (
                keys_pb2.OUTCOME_REFUSED,
                "HEADER_REFUSED",
            ), spelling
            assert not answer.end.sent_upstream
            assert not answer.end.HasField("key"), "nothing was decrypted for it"
    assert list(service.simulator.requests) == []
    assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()


@pytest.mark.parametrize("chunked", [False, True], ids=["with length", "chunked"])
async def test_what_breaks_a_line_is_refused(service: TestService, *, chunked: bool) -> None:
    """Names that are no tokens and values with CR, LF, NUL or outer blanks never reach the wire."""
    agent, _ = await opened(service)
    bad = [(name, b"x") for name in MALFORMED_NAMES] + [("x-a", v) for v in MALFORMED_VALUES]
    for header in bad:
        answer = await agent.call(body=message_body(), headers=[*HEADERS, header], chunked=chunked)
        assert answer.reason == "HEADER_MALFORMED", header
        assert not answer.end.sent_upstream
    assert list(service.simulator.requests) == []
    await agent.close()


async def test_what_arrives_carries_one_key_and_one_framing(service: TestService) -> None:
    """A request that passes arrives with the workspace's key once, one Host, one framing, and every
    header that the agent sent as it was sent.
    """
    agent, key = await opened(service)
    sent = [
        *HEADERS,
        ("anthropic-beta", b"a-2025-01-01"),
        ("Anthropic-Beta", b"b-2025-01-01"),
        ("X-Stainless-Lang", b"python"),
        ("x-api-keys", b"not the header"),
        ("content-length-x", b"99"),
    ]
    for method, path, body, chunked in (
        ("POST", "/v1/messages", message_body(), False),
        ("POST", "/v1/messages", message_body(stream=True), True),
        ("GET", "/v1/models", None, False),
        ("HEAD", "/v1/models", None, False),
    ):
        answer = await agent.call(method, path, body, headers=sent, chunked=chunked)
        assert answer.end.outcome == keys_pb2.OUTCOME_COMPLETED
        record = service.simulator.requests[-1]
        assert record.values("x-api-key") == [key]
        assert record.values("host") == [f"api.anthropic.com:{service.simulator.port}"]
        framing = record.values("content-length") + record.values("transfer-encoding")
        if body is None:
            assert framing in ([], ["0"])
        else:
            assert framing == (["chunked"] if chunked else [str(len(body))])
            assert record.body == body
        for name in ("authorization", "cookie", "connection", "te", "upgrade", "expect"):
            assert record.values(name) == []
        arrived = [(name, value.encode()) for name, value in record.headers]
        assert [pair for pair in arrived if pair in sent] == sent, "in order, in their own case"
    await agent.close()


async def test_metadata_of_the_rpc_goes_nowhere(service: TestService) -> None:
    """What an agent puts into gRPC's own metadata is no header of the request."""
    _, key = await opened(service)
    stub = service.keys(AGENT)
    stream = stub.WithKey(
        timeout=20, metadata=(("x-api-key", MINE.decode()), ("authorization", "Bearer x"))
    )
    for message in (
        {"start": keys_pb2.Start(parent="workspaces/acme")},
        {"head": keys_pb2.RequestHead(call=1, method="GET", path="/v1/models")},
        {"end": keys_pb2.RequestEnd()},
    ):
        await stream.write(keys_pb2.WithKeyRequest(**message))  # type: ignore[arg-type]
    while (await stream.read()).WhichOneof("message") != "end":
        pass
    (record,) = service.simulator.requests
    assert (record.values("x-api-key"), record.values("authorization")) == ([key], [])
    stream.cancel()


async def test_a_body_longer_or_shorter_than_it_said_is_no_second_request(
    service: TestService,
) -> None:
    """Bytes beyond the stated length never become a request of their own (request smuggling)."""
    agent, key = await opened(service)
    smuggled = b"POST /v1/organizations/api_keys HTTP/1.1\r\nhost: x\r\n\r\n"
    for length in (1, 4):
        agent.number += 1
        head = keys_pb2.RequestHead(
            call=agent.number,
            method="POST",
            path="/v1/messages",
            headers=[keys_pb2.Header(name=name, value=value) for name, value in HEADERS],
            content_length=length,
        )
        await agent.send(head=head)
        await agent.send(body=keys_pb2.RequestBody(data=b"{}" + smuggled))
        await agent.send(end=keys_pb2.RequestEnd())
        assert (await agent.answer()).reason == "BODY_LENGTH_MISMATCH"
    assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await service.simulator.wait_for_end(len(service.simulator.requests))
    whole = [record for record in service.simulator.requests if record.finished_at is not None]
    assert {record.path for record in service.simulator.requests} == {"/v1/messages"}
    assert whole[-1].key == key
    await agent.close()
