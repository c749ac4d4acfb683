"""The relay and the validator against the Anthropic simulator, over TLS."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable

import pytest

from fixtures.simulator import TestSimulator
from ironwork_server.core.errors import UpstreamFailed
from ironwork_server.core.ports import Injector, UpstreamResponse
from ironwork_server.core.secret import Secret
from ironwork_server.core.values import ScreenedRequest, Verdict
from ironwork_server.upstream import HttpUpstream, UpstreamEndpoint
from ironwork_server.upstream.validator import AnthropicKeyValidator
from ironwork_simulator import Behaviour, Match

HEADERS = ((b"content-type", b"application/json"), (b"anthropic-version", b"2023-06-01"))


class LentKey:
    """An injector of a throw-away key."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()
        self.length = len(self._key)

    def inject(self, target: memoryview) -> None:
        target[:] = self._key

    def discard(self) -> None:
        """Nothing is held."""


class Progress:
    sent = False


@pytest.fixture
async def upstream(simulator: TestSimulator) -> AsyncIterator[HttpUpstream]:
    """A client of the simulator that insists on api.anthropic.com's certificate."""
    client = HttpUpstream(
        UpstreamEndpoint(
            "api.anthropic.com",
            simulator.port,
            ca_file=simulator.ca_file,
            connect_address=simulator.host,
        )
    )
    yield client
    await client.close()


def messages(
    upstream: HttpUpstream, key: str, *, stream: bool = True
) -> contextlib.AbstractAsyncContextManager[UpstreamResponse]:
    """One Messages request with this key."""
    content = json.dumps(
        {
            "model": "claude-sonnet-4-5",
            "max_tokens": 100,
            "stream": stream,
            "messages": [{"role": "user", "content": "Hello"}],
        }
    ).encode()

    async def body() -> AsyncIterator[bytes]:
        yield content[:10]
        yield content[10:]

    async def credential() -> Injector:
        return LentKey(key)

    request = ScreenedRequest(
        "POST", "/v1/messages", "beta=true", HEADERS, len(content), True, 1 << 20, "messages"
    )
    return upstream.send(request, body(), credential, Progress())


async def test_a_stream_comes_as_the_simulator_wrote_it(
    simulator: TestSimulator, upstream: HttpUpstream, make_key: Callable[..., str]
) -> None:
    """Server-sent events arrive whole, from message_start to message_stop, with their headers."""
    key = make_key()
    async with messages(upstream, key) as response:
        body = b"".join([chunk async for chunk in response.chunks()])
        names = {name.lower() for name, _ in response.headers}
    assert response.status == 200
    assert body.startswith(b"event: message_start\n")
    assert b"event: message_stop\n" in body
    assert {b"request-id", b"anthropic-organization-id"} <= names
    record = await simulator.wait_for_end(1)
    assert len(simulator.requests) == 1
    assert (record.key, record.credential_header) == (key, "x-api-key")
    assert record.target == "/v1/messages?beta=true"
    assert record.status == 200
    assert record.finished_at is not None
    assert record.disconnected_at is None


async def test_requests_in_turn_each_use_their_own_key(
    simulator: TestSimulator, upstream: HttpUpstream, make_key: Callable[..., str]
) -> None:
    """Two keys on one connection: each request carries its own."""
    keys = [make_key(), make_key()]
    for key in keys:
        async with messages(upstream, key, stream=False) as response:
            body = b"".join([chunk async for chunk in response.chunks()])
            assert json.loads(body)["type"] == "message"
    assert [record.key for record in simulator.requests] == keys
    assert len({record.connection for record in simulator.requests}) == 1


async def test_error_bodies_are_passed_on_exactly(
    simulator: TestSimulator, upstream: HttpUpstream, make_key: Callable[..., str]
) -> None:
    """A 529 keeps its status, headers and every byte of its body."""
    simulator.script(None, Behaviour(status=529, retry_after_s=3))
    async with messages(upstream, make_key()) as response:
        body = b"".join([chunk async for chunk in response.chunks()])
    assert response.status == 529
    assert (b"retry-after", b"3") in [(name.lower(), value) for name, value in response.headers]
    assert json.loads(body)["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize(
    "cut",
    ["close_before_head", "reset_before_head", "content_length", "chunked", "mid_chunk", "reset"],
)
async def test_no_cut_of_the_simulators_ends_cleanly(
    cut: str, simulator: TestSimulator, upstream: HttpUpstream, make_key: Callable[..., str]
) -> None:
    """Each way of breaking an answer off is UPSTREAM_CUT."""
    simulator.script(None, Behaviour(cut=cut))
    exchange = messages(upstream, make_key(), stream=cut != "content_length")
    with pytest.raises(UpstreamFailed) as caught:
        await _read_all(exchange)
    assert caught.value.reason == "UPSTREAM_CUT"
    assert upstream.connections == (0, 0)


async def _read_all(
    exchange: contextlib.AbstractAsyncContextManager[UpstreamResponse],
) -> None:
    async with exchange as response:
        async for _ in response.chunks():
            pass


@pytest.mark.parametrize("close", ["announced", "after_response"])
async def test_a_connection_that_the_simulator_ends_is_replaced(
    close: str, simulator: TestSimulator, upstream: HttpUpstream, make_key: Callable[..., str]
) -> None:
    """A request after an ended connection goes out on a new one."""
    simulator.script(None, Behaviour(close=close))
    for _ in range(2):
        async with messages(upstream, make_key(), stream=False) as response:
            assert response.status == 200
            async for _ in response.chunks():
                pass
        while upstream.connections[1] and len(simulator.requests) == 1:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0)  # until the pool has seen the end of the idle connection
    assert len({record.connection for record in simulator.requests}) == 2


async def test_leaving_a_stream_reaches_the_simulator(
    simulator: TestSimulator, upstream: HttpUpstream, make_key: Callable[..., str]
) -> None:
    """An answer that nobody reads on is ended within a second."""
    hold = simulator.hold()
    simulator.script(None, Behaviour(hold=hold.name, hold_at="body", hold_after=2))
    async with messages(upstream, make_key()) as response:
        assert await anext(response.chunks())
    await simulator.disconnected(1, timeout_s=1.0)
    hold.release()


@pytest.mark.parametrize(
    ("kind", "verdict", "detail"),
    [
        ("valid", Verdict.VALID, "ACCEPTED"),
        ("revoked", Verdict.INVALID, "AUTHENTICATION_ERROR"),
        ("without_inference", Verdict.WITHOUT_PERMISSION, "PERMISSION_ERROR"),
        ("without_credit", Verdict.UNVERIFIABLE, "BILLING_ERROR"),
    ],
)
async def test_the_validator_tells_the_simulators_keys_apart(
    kind: str,
    verdict: Verdict,
    detail: str,
    simulator: TestSimulator,
    upstream: HttpUpstream,
    make_key: Callable[..., str],
) -> None:
    """Every kind of key gets its verdict, by the two calls that cost no tokens."""
    with Secret(make_key(kind).encode()) as key:
        validation = await AnthropicKeyValidator(upstream).validate(key)
    assert (validation.verdict, validation.detail) == (verdict, detail)
    paths = [record.path for record in simulator.requests]
    assert paths == ["/v1/models", "/v1/messages/count_tokens"][: len(paths)]


async def test_a_busy_anthropic_leaves_a_key_unverified(
    simulator: TestSimulator,
    upstream: HttpUpstream,
    make_key: Callable[..., str],
) -> None:
    """429, 500 and 529 are unverifiable, and each is asked once."""
    validator = AnthropicKeyValidator(upstream)
    for status in (429, 500, 529):
        simulator.script(Match(path="/v1/models"), Behaviour(status=status, retry_after_s=5))
        with Secret(make_key().encode()) as key:
            validation = await validator.validate(key)
        assert validation.verdict is Verdict.UNVERIFIABLE
        assert validation.retry_after_s == 5.0
    assert len(simulator.requests) == 3
