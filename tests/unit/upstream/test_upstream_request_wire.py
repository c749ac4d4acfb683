"""What goes over the wire, byte for byte, and where the key is meanwhile."""

import asyncio
import dataclasses
from collections.abc import Callable

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ironwork_server.core.errors import InvalidRequest, Unavailable
from ironwork_server.core.ports import Injector
from ironwork_server.upstream import HttpUpstream
from ironwork_server.upstream.channel import Channel
from ironwork_server.upstream.headers import request_head
from unit.upstream.raw_server import RawServer
from unit.upstream.sending import KEY, OK, KeyInjector, Keys, Progress, fetch, get, pieces, post


def authority_of(server: RawServer) -> bytes:
    return server.endpoint.authority.encode()


async def test_a_get_is_sent_byte_for_byte(server: RawServer, upstream: HttpUpstream) -> None:
    """A GET is its request line, Host, the agent's headers as given and the key; no framing."""
    answer = asyncio.create_task(fetch(upstream, get("/v1/models", "limit=2&after_id=a%2Fb")))
    connection = await server.connection()
    assert await connection.head() == (
        b"GET /v1/models?limit=2&after_id=a%2Fb HTTP/1.1\r\n"
        b"Host: " + authority_of(server) + b"\r\n"
        b"Content-Type: application/json\r\n"
        b"anthropic-version: 2023-06-01\r\n"
        b"x-api-key: " + KEY + b"\r\n\r\n"
    )
    connection.send(OK)
    assert await answer == (200, b"ok")


async def test_a_body_of_known_length_is_sent_with_it(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """A body with a length gets a Content-Length of ours and goes out unchanged."""
    answer = asyncio.create_task(fetch(upstream, post(6), pieces(b"abc", b"", b"def")))
    connection = await server.connection()
    received = await connection.ends_with(b"\r\n\r\nabcdef")
    assert b"\r\nContent-Length: 6\r\nx-api-key: " in received
    assert b"ransfer-encoding" not in received.lower()
    connection.send(OK)
    assert await answer == (200, b"ok")


async def test_a_body_of_unknown_length_is_sent_in_chunks(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """A body without a length is sent chunked; an empty piece does not end it."""
    answer = asyncio.create_task(fetch(upstream, post(None), pieces(b"abc", b"", b"defgh")))
    connection = await server.connection()
    received = await connection.ends_with(b"\r\n\r\n3\r\nabc\r\n5\r\ndefgh\r\n0\r\n\r\n")
    assert b"\r\nTransfer-Encoding: chunked\r\nx-api-key: " in received
    assert b"content-length" not in received.lower()
    connection.send(OK)
    assert await answer == (200, b"ok")


async def test_a_post_without_a_body_says_so(server: RawServer, upstream: HttpUpstream) -> None:
    """A POST that has no body carries Content-Length: 0 (RFC 9110 section 8.6)."""
    request = dataclasses.replace(post(None), has_body=False)
    answer = asyncio.create_task(fetch(upstream, request))
    connection = await server.connection()
    assert b"\r\nContent-Length: 0\r\n" in await connection.head()
    connection.send(OK)
    assert await answer == (200, b"ok")


async def test_the_agents_headers_keep_case_order_and_duplicates(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """The agent's headers arrive as it wrote them; nothing is added, not even accept-encoding."""
    headers = (
        (b"Anthropic-BETA", b"one"),
        (b"x-Stainless-Lang", b"python"),
        (b"anthropic-beta", b"two"),
        (b"X-Empty", b""),
        (b"x-bytes", b"caf\xc3\xa9"),
    )
    answer = asyncio.create_task(fetch(upstream, post(0, headers=headers)))
    connection = await server.connection()
    lines = (await connection.head()).split(b"\r\n")
    assert lines == [
        b"POST /v1/messages HTTP/1.1",
        b"Host: " + authority_of(server),
        *[name + b": " + value for name, value in headers],
        b"Content-Length: 0",
        b"x-api-key: " + KEY,
        b"",
        b"",
    ]
    connection.send(OK)
    await answer


@pytest.mark.parametrize(
    "name",
    [
        *(b"Host", b"content-length", b"Transfer-Encoding", b"connection", b"Keep-Alive"),
        *(b"TE", b"trailer", b"upgrade", b"X-API-Key", b"Authorization", b"cookie"),
        *(b"proxy-authorization", b"proxy-connection", b"proxy-authenticate"),
    ],
)
async def test_framing_and_credentials_of_the_agent_are_refused(
    name: bytes, plain_server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """A framing, hop-by-hop or credential header is refused before a connection is made."""
    request = post(0, headers=((name, b"agent-value"),))
    with pytest.raises(InvalidRequest) as caught:
        await fetch(make_upstream(plain_server), request)
    assert caught.value.reason == "HEADER_REFUSED"
    assert "agent-value" not in caught.value.message
    assert plain_server.connections == []


@pytest.mark.parametrize(
    "change",
    [
        {"headers": ((b"x-note", b"secret-value\r\nX-Injected: 1"),)},
        {"headers": ((b"x-note", b"secret-value\x00"),)},
        {"headers": ((b"x secret-value", b"1"),)},
        {"headers": ((b"x-large", b"v" * 70_000),)},
        {"path": "/v1/secret-value messages"},
        {"path": "/v1/secret-value\r\nX-Injected: 1"},
        {"path": "/v1/secret-value-\u00e9"},
        {"query": "secret-value=\n"},
        {"method": "GET secret-value"},
    ],
)
async def test_what_http_does_not_allow_is_refused_without_being_quoted(
    change: dict[str, object], plain_server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """A character that would break the head is refused, and no error repeats the value."""
    keys = Keys()
    with pytest.raises(InvalidRequest) as caught:
        await fetch(make_upstream(plain_server), dataclasses.replace(post(0), **change), keys=keys)
    assert caught.value.reason == "HEAD_MALFORMED"
    assert "secret-value" not in repr(caught.value) + str(caught.value.metadata)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert (plain_server.connections, keys.given) == ([], [])


_TOKEN = st.text("abcXYZ019-_", min_size=1, max_size=12).map(lambda text: b"x-" + text.encode())
_VALUE = st.binary(min_size=0, max_size=40)


@settings(max_examples=200, deadline=None)
@given(headers=st.lists(st.tuples(_TOKEN, _VALUE), max_size=8).map(tuple))
def test_no_header_value_can_change_the_shape_of_a_head(
    headers: tuple[tuple[bytes, bytes], ...],
) -> None:
    """Whatever a header holds, it is refused or stays one line of the head."""
    request = post(0, headers=headers)
    breaks = any(set(value) & set(b"\r\n\x00") for _, value in headers)
    try:
        head = request_head(h11.Connection(h11.CLIENT), request, "host")
    except InvalidRequest:
        return  # stricter than CR, LF and NUL is welcome
    assert not breaks
    lines = head.split(b"\n")
    assert len(lines) == len(headers) + 4
    assert [line.rstrip(b"\r") for line in lines[2:-2]] == [
        name + b": " + value for name, value in headers
    ]


async def test_the_buffer_that_held_the_key_is_zero_when_the_write_returns(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """The one buffer that the key is decrypted into holds zeros after the write, all of it."""
    buffers: list[object] = []
    keys = Keys([KeyInjector(on_inject=lambda target: buffers.append(target.obj))])
    answer = asyncio.create_task(fetch(upstream, get(), keys=keys))
    connection = await server.connection()
    assert KEY in await connection.head()
    (buffer,) = buffers
    assert isinstance(buffer, bytearray)
    assert len(buffer) > len(KEY)
    assert not any(buffer)
    connection.send(OK)
    await answer


async def test_the_buffer_is_wiped_when_the_write_fails(
    server: RawServer, upstream: HttpUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails leaves no key behind, and its error is ours."""
    buffers: list[object] = []
    keys = Keys([KeyInjector(on_inject=lambda target: buffers.append(target.obj))])
    progress = Progress()

    def fail(self: Channel, data: bytes) -> None:
        raise BrokenPipeError("a foreign text")

    monkeypatch.setattr(Channel, "write", fail)
    with pytest.raises(Exception, match="cut off") as caught:
        await fetch(upstream, get(), keys=keys, progress=progress)
    assert "foreign" not in str(caught.value)
    (buffer,) = buffers
    assert isinstance(buffer, bytearray)
    assert not any(buffer)
    assert progress.sent
    assert keys.given[0].discarded == 1


async def test_the_key_is_asked_for_when_the_connection_is_ready(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """The credential is prepared on a live connection; progress.sent is set after inject."""
    order: list[str] = []
    progress = Progress()

    async def credential() -> Injector:
        await server.connection()
        order.append("prepared")
        return KeyInjector(on_inject=lambda _: order.append(f"injected, sent={progress.sent}"))

    async with asyncio.TaskGroup() as group:
        answer = group.create_task(_read(upstream, credential, progress))
        connection = await server.connection()
        await connection.head()
        assert order == ["prepared", "injected, sent=False"]
        assert progress.sent
        connection.send(OK)
    assert answer.result() == b"ok"


async def _read(upstream: HttpUpstream, credential: Callable, progress: Progress) -> bytes:  # type: ignore[type-arg]
    async with upstream.send(get(), pieces(), credential, progress) as response:
        return b"".join([chunk async for chunk in response.chunks()])


async def test_a_stale_credential_is_prepared_again(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """A key that was read too long ago is read again, and each injector is discarded once."""
    keys = Keys([KeyInjector(stale=True), KeyInjector(stale=True)])
    answer = asyncio.create_task(fetch(upstream, get(), keys=keys))
    connection = await server.connection()
    assert (await connection.head()).count(KEY) == 1
    connection.send(OK)
    assert await answer == (200, b"ok")
    assert [injector.discarded for injector in keys.given] == [1, 1, 1]
    assert len(server.connections) == 1


async def test_a_credential_that_stays_stale_ends_the_call(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """After three stale reads the call fails as retryable, with nothing sent."""
    keys = Keys([KeyInjector(stale=True) for _ in range(4)])
    progress = Progress()
    with pytest.raises(Unavailable) as caught:
        await fetch(upstream, get(), keys=keys, progress=progress)
    assert caught.value.reason == "CREDENTIAL_STALE"
    assert caught.value.retry_after_s is not None
    assert len(keys.given) == 3
    assert not progress.sent
    assert upstream.connections == (0, 1)


async def test_an_error_of_the_credential_passes_unchanged(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """What the credential raises is what the caller gets; the connection is kept."""
    error = Unavailable("the device is away", reason="HSM_UNAVAILABLE")
    progress = Progress()

    async def credential() -> Injector:
        raise error

    with pytest.raises(Unavailable) as caught:
        async with upstream.send(get(), pieces(), credential, progress):
            pass
    assert caught.value is error
    assert not progress.sent
    assert upstream.connections == (0, 1)
