"""The operator's CONNECT proxy: it sees CONNECT and ciphertext, and may fail in every way."""

import asyncio
import base64
import os
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from fixtures.connect_proxy import ESTABLISHED, ConnectProxy
from ironwork_server.core.errors import Unavailable, UpstreamFailed
from ironwork_server.core.secret import Secret
from ironwork_server.core.values import Verdict
from ironwork_server.upstream import (
    HttpUpstream,
    UpstreamEndpoint,
    UpstreamProxy,
    UpstreamTimeouts,
)
from ironwork_server.upstream.validator import AnthropicKeyValidator
from unit.upstream.certificates import Authority
from unit.upstream.raw_server import HOST, RawConnection, RawServer, free_port
from unit.upstream.sending import KEY, OK, Keys, Progress, fetch, get, pieces

PROXY = "proxy.example"
Make = Callable[..., HttpUpstream]


@pytest.fixture
async def proxy() -> AsyncIterator[ConnectProxy]:
    async with ConnectProxy.run() as running:
        yield running


@pytest.fixture
async def through(tls_server: RawServer, authority: Authority) -> AsyncIterator[Make]:
    """through(proxy, **options): a client of tls_server by that proxy, which alone resolves."""
    made: list[HttpUpstream] = []

    def make(proxy: ConnectProxy | UpstreamProxy, **timeouts: float) -> HttpUpstream:
        if isinstance(proxy, ConnectProxy):
            proxy = UpstreamProxy("127.0.0.1", proxy.port)
        upstream = HttpUpstream(
            UpstreamEndpoint(HOST, tls_server.port, ca_file=authority.ca_file),
            proxy=proxy,
            timeouts=UpstreamTimeouts(**timeouts),
        )
        made.append(upstream)
        return upstream

    yield make
    for upstream in made:
        await upstream.close()


async def exchange(
    server: RawServer, upstream: HttpUpstream, index: int = 0, number: int = 1
) -> None:
    """One whole exchange, as the number-th on the connection with this index."""
    answer = asyncio.create_task(fetch(upstream))
    connection = await server.connection(index)
    await connection.head(number)
    connection.send(OK)
    assert await answer == (200, b"ok")


async def refused(upstream: HttpUpstream) -> Unavailable:
    """The error of a call that never got to Anthropic; nothing was decrypted for it."""
    keys, progress = Keys(), Progress()
    with pytest.raises(Unavailable) as caught:
        await fetch(upstream, keys=keys, progress=progress)
    assert (keys.given, progress.sent) == ([], False)
    assert caught.value.retry_after_s is not None
    assert upstream.connections == (0, 0)
    return caught.value


async def test_the_proxy_sees_connect_and_ciphertext(
    tls_server: RawServer, proxy: ConnectProxy, through: Make
) -> None:
    """The proxy is told a name and a port, gets no credential that was not set, and carries TLS
    that ends at Anthropic; its tunnel is used again like any connection."""
    upstream = through(proxy)
    for number in (1, 2):
        await exchange(tls_server, upstream, 0, number)
    (tunnel,) = proxy.tunnels
    target = f"{HOST}:{tls_server.port}".encode()
    assert tunnel.head == b"CONNECT " + target + b" HTTP/1.1\r\nHost: " + target + b"\r\n\r\n"
    assert tunnel.through[:2] == b"\x16\x03", "a TLS handshake record"
    assert KEY not in tunnel.through
    assert b"/v1/models" not in tunnel.through
    assert tls_server.connections[0].received.count(KEY) == 2
    assert upstream.connections == (0, 1)


async def test_a_large_body_and_answer_pass_through(
    tls_server: RawServer, proxy: ConnectProxy, through: Make
) -> None:
    """Many TLS records in a row come out as they went in."""
    data = bytes(range(256)) * 4096
    answer = asyncio.create_task(fetch(through(proxy)))
    connection = await tls_server.connection()
    await connection.head()
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    assert await answer == (200, data)


async def test_credentials_come_from_a_file(
    tls_server: RawServer, proxy: ConnectProxy, through: Make, tmp_path: Path
) -> None:
    """The proxy gets the file's line as Basic (RFC 7617), and Anthropic gets none of it."""
    file = tmp_path / "proxy"
    file.write_bytes("ünser:pass:word\n".encode())
    file.chmod(0o600)
    proxy.credentials = b"Basic " + base64.b64encode("ünser:pass:word".encode())
    await exchange(
        tls_server,
        through(UpstreamProxy("127.0.0.1", proxy.port, credentials_file=file)),
    )
    assert b"Authorization" not in tls_server.connections[0].received
    error = await refused(through(proxy))
    assert (error.reason, error.metadata) == ("UPSTREAM_PROXY_REFUSED", {"proxy_status": "407"})


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 407 Authenticate\r\nProxy-Authenticate: Basic\r\n\r\nwho?", "407"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 9\r\n\r\nno way ou", "502"),
        (b"HTTP/1.1 302 Found\r\nLocation: https://evil.example/\r\n\r\n", "302"),
        (b"HTTP/1.0 403 Forbidden\r\n\r\n<html>blocked by policy", "403"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\n\r\n", "503"),
    ],
)
async def test_a_refusing_proxy_is_told_by_its_status(
    answer: bytes, status: str, proxy: ConnectProxy, through: Make
) -> None:
    """Whatever is no 2xx ends the call, typed, with the status; a redirect is not followed, and
    nothing that the proxy wrote is quoted."""
    proxy.answer = answer
    error = await refused(through(proxy))
    assert error.reason == "UPSTREAM_PROXY_REFUSED"
    assert error.metadata == {"proxy_status": status}
    assert len(proxy.tunnels) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nVia: half an ans",
        b"HTTP/1.1 200 OK\r\nNo colon\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 17,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        ESTABLISHED + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        ESTABLISHED + b"\x16",
        b"",
    ],
    ids=[
        *("ssh", "tls-alert", "http-2", "half", "no-colon", "101", "endless-1xx", "endless-head"),
        *("answer-behind", "byte-behind", "nothing"),
    ],
)
async def test_a_proxy_that_does_not_speak_http_is_refused(
    answer: bytes, proxy: ConnectProxy, through: Make
) -> None:
    """Garbage, half an answer, and bytes behind the 200: Anthropic never speaks first, so they
    could only be the proxy's own."""
    proxy.answer = answer
    error = await refused(through(proxy))
    assert error.reason == "UPSTREAM_PROXY_MALFORMED"


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nX: y", b"HTTP/1.1 100 Continue\r\n\r\n"]
)
async def test_a_slow_proxy_is_not_waited_for(
    answer: bytes, proxy: ConnectProxy, through: Make
) -> None:
    """The tunnel has a deadline; what was begun is closed when it passes."""
    proxy.answer, proxy.hang = answer, True
    error = await refused(through(proxy, connect_s=0.05))
    assert error.reason == "UPSTREAM_PROXY_TIMEOUT"
    await proxy.tunnels[0].ended.wait()


async def test_a_tunnel_that_leads_nowhere_has_a_deadline_too(
    proxy: ConnectProxy, through: Make
) -> None:
    """A 200 with nobody behind it: the deadline of TLS ends it."""
    proxy.answer, proxy.hang = ESTABLISHED, True
    error = await refused(through(proxy, connect_s=0.05))
    assert error.reason == "UPSTREAM_TIMEOUT_CONNECT"
    await proxy.tunnels[0].ended.wait()


async def test_a_proxy_that_is_not_there(through: Make) -> None:
    """Nobody listens, or its name is unknown: told apart from Anthropic's absence."""
    error = await refused(through(UpstreamProxy("127.0.0.1", free_port())))
    assert error.reason == "UPSTREAM_PROXY_UNREACHABLE"


async def test_a_proxy_that_ends_the_tunnel_before_tls_is_done(
    proxy: ConnectProxy, through: Make
) -> None:
    """Nothing was sent, and the call says so."""
    proxy.answer = ESTABLISHED
    assert (await refused(through(proxy))).reason in {
        "UPSTREAM_PROXY_MALFORMED",  # the end came with the 200
        "UPSTREAM_TLS_FAILED",
        "UPSTREAM_UNREACHABLE",
    }


async def test_a_proxy_that_opens_tls_itself_is_refused(
    authority: Authority, tls_server: RawServer, through: Make, tmp_path: Path
) -> None:
    """An inspecting proxy has a certificate for the right name from a root of its own, or one of
    the right root for another name: neither gets a request."""
    stranger = Authority(tmp_path)
    for issued in (stranger.issue(HOST), authority.issue(PROXY)):
        async with RawServer.run(authority, issued) as inspector, ConnectProxy.run() as proxy:
            upstream = HttpUpstream(
                UpstreamEndpoint(HOST, inspector.port, ca_file=authority.ca_file),
                proxy=UpstreamProxy("127.0.0.1", proxy.port),
            )
            assert (await refused(upstream)).reason == "UPSTREAM_TLS_UNTRUSTED"
            await upstream.close()


@pytest.mark.parametrize("answered", [False, True], ids=["before-the-head", "in-the-body"])
async def test_a_proxy_that_closes_in_mid_tunnel_is_a_cut(
    answered: bool, tls_server: RawServer, proxy: ConnectProxy, through: Make
) -> None:
    """An answer that the proxy cuts never looks whole, and is not asked for again."""
    progress = Progress()
    task = asyncio.create_task(fetch(through(proxy), progress=progress))
    connection = await tls_server.connection()
    await connection.head()
    if answered:
        connection.send(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
        await connection.flush()
    proxy.tunnels[0].cut()
    with pytest.raises(UpstreamFailed) as caught:
        await task
    assert caught.value.reason == "UPSTREAM_CUT"
    assert progress.sent
    assert len(proxy.tunnels) == 1


async def test_an_idle_tunnel_that_ends_is_replaced(
    tls_server: RawServer, proxy: ConnectProxy, through: Make
) -> None:
    """The pool forgets a tunnel that died idle as it forgets a connection."""
    upstream = through(proxy)
    await exchange(tls_server, upstream, 0)
    proxy.tunnels[0].cut()
    while upstream.connections[1]:  # noqa: ASYNC110 - the pool tells nobody
        await asyncio.sleep(0)
    await exchange(tls_server, upstream, 1)
    assert len(proxy.tunnels) == 2


async def test_cancelling_while_the_proxy_thinks_ends_the_tunnel(
    proxy: ConnectProxy, through: Make
) -> None:
    """Nobody waits for a tunnel that nobody wants: its socket is closed at once."""
    proxy.answer, proxy.hang = b"", True
    task = asyncio.create_task(fetch(through(proxy)))
    while not proxy.tunnels:  # noqa: ASYNC110 - the proxy tells nobody
        await asyncio.sleep(0)
    task.cancel()
    await proxy.tunnels[0].ended.wait()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_leaving_early_ends_the_tunnel(
    tls_server: RawServer, proxy: ConnectProxy, through: Make
) -> None:
    """A call that is left ends at Anthropic also behind a proxy."""
    upstream = through(proxy)

    async def leave() -> None:
        async with upstream.send(get(), pieces(), Keys(), Progress()) as response:
            assert await anext(response.chunks()) == b"first"

    task = asyncio.create_task(leave())
    connection: RawConnection = await tls_server.connection()
    await connection.head()
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
    await task
    await proxy.tunnels[0].ended.wait()
    await connection.disconnected.wait()


async def test_the_validator_uses_the_proxy(
    tls_server: RawServer, proxy: ConnectProxy, through: Make
) -> None:
    """A key that is added takes the same way, and a proxy that refuses makes it unverifiable."""
    validator = AnthropicKeyValidator(through(proxy))
    with Secret(KEY) as key:
        task = asyncio.create_task(validator.validate(key))
        connection = await tls_server.connection()
        await connection.head()
        connection.send(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")
        assert (await task).detail == "SERVER_ERROR"
        assert KEY not in proxy.tunnels[0].through
        proxy.answer = b"HTTP/1.1 502 Bad Gateway\r\n\r\n"
        verdict = await AnthropicKeyValidator(through(proxy)).validate(key)
    assert (verdict.verdict, verdict.detail) == (Verdict.UNVERIFIABLE, "UPSTREAM_PROXY_REFUSED")


# --- https proxies -------------------------------------------------------------------------


@pytest.fixture
async def tls_proxy(authority: Authority) -> AsyncIterator[ConnectProxy]:
    async with ConnectProxy.run(authority.issue("localhost").server_context()) as running:
        yield running


async def test_tls_with_the_proxy_is_around_tls_with_anthropic(
    tls_server: RawServer, tls_proxy: ConnectProxy, through: Make, authority: Authority
) -> None:
    """An https proxy sees what an http proxy sees, and the network does not even see that; large
    answers pass through both."""
    upstream = through(
        UpstreamProxy("localhost", tls_proxy.port, tls=True, ca_file=authority.ca_file)
    )
    for number in (1, 2):
        await exchange(tls_server, upstream, 0, number)
    (tunnel,) = tls_proxy.tunnels
    assert tunnel.head.startswith(b"CONNECT api.anthropic.com:")
    assert tunnel.through[:2] == b"\x16\x03"
    assert KEY not in tunnel.through
    data = bytes(range(256)) * 4096
    answer = asyncio.create_task(fetch(upstream))
    connection = tls_server.connections[0]
    await connection.head(3)
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    assert await answer == (200, data)


async def test_an_https_proxy_must_prove_itself(
    tls_proxy: ConnectProxy, through: Make, authority: Authority, tmp_path: Path
) -> None:
    """A certificate for another name, or of another root, gets no CONNECT and no credentials."""
    for proxy in (
        UpstreamProxy("127.0.0.1", tls_proxy.port, tls=True, ca_file=authority.ca_file),
        UpstreamProxy("localhost", tls_proxy.port, tls=True, ca_file=Authority(tmp_path).ca_file),
    ):
        assert (await refused(through(proxy))).reason == "UPSTREAM_PROXY_UNTRUSTED"
    assert [target for target in tls_proxy.targets if target] == []


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "close-notify"])
async def test_an_https_proxy_that_ends_is_a_cut(
    cut: bool, tls_server: RawServer, tls_proxy: ConnectProxy, through: Make, authority: Authority
) -> None:
    """The proxy's announced end is not Anthropic's: an answer that runs to the end is cut by it."""
    upstream = through(
        UpstreamProxy("localhost", tls_proxy.port, tls=True, ca_file=authority.ca_file)
    )
    task = asyncio.create_task(fetch(upstream))
    connection = await tls_server.connection()
    await connection.head()
    connection.send(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
    await connection.flush()
    if cut:
        tls_proxy.tunnels[0].cut()
    else:
        tls_proxy.tunnels[0].writers[0].close()
    with pytest.raises(UpstreamFailed) as caught:
        await task
    assert caught.value.reason == "UPSTREAM_CUT"


# --- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://proxy.example:3128", UpstreamProxy(PROXY, 3128)),
        ("http://10.0.0.1:8080/", UpstreamProxy("10.0.0.1", 8080)),
        ("http://[::1]:8080", UpstreamProxy("::1", 8080)),
        ("https://proxy.example:443", UpstreamProxy(PROXY, 443, tls=True)),
    ],
)
def test_a_proxy_parses(url: str, expected: UpstreamProxy) -> None:
    """A proxy is a scheme, a host and a port."""
    assert UpstreamProxy.parse(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        *("proxy.example:3128", "http://proxy.example", "http://:3128", "socks5://p.example:1080"),
        *("http://p.example:1/path", "http://p.example:1?q", "http://p.example:1#f", "http://[x:1"),
        *("http://p.example:99999", "http://p.example:0", "http://p_q:1", "http://p q:1", ""),
    ],
)
def test_what_is_no_proxy_is_refused(url: str) -> None:
    """Anything else is refused by the setting's name, without quoting it."""
    with pytest.raises(ValueError, match=r"^upstream\.proxy: give ") as caught:
        UpstreamProxy.parse(url)
    assert not url or url not in str(caught.value)


@pytest.mark.parametrize("userinfo", ["user:hunter2", "user", ":", ""])
def test_credentials_in_the_url_are_refused(userinfo: str) -> None:
    """A URL stands in process lists and settings: the refusal says where credentials go."""
    with pytest.raises(ValueError, match=r"proxy_credentials") as caught:
        UpstreamProxy.parse(f"http://{userinfo}@proxy.example:3128")
    assert "hunter2" not in str(caught.value)


def test_a_ca_without_tls_is_refused(tmp_path: Path) -> None:
    """Roots for an http proxy are a mistake, and roots that cannot be read are named."""
    with pytest.raises(ValueError, match=r"^upstream\.proxy_ca: it has no meaning"):
        UpstreamProxy.parse("http://proxy.example:1", ca_file=tmp_path)
    proxy = UpstreamProxy.parse("https://proxy.example:1", ca_file=tmp_path / "none.pem")
    with pytest.raises(ValueError, match=r"^upstream\.proxy_ca .*none\.pem: it cannot be read"):
        proxy.tls_context()
    system = UpstreamProxy.parse("https://proxy.example:1").tls_context()
    assert system is not None
    assert system.verify_mode is ssl.CERT_REQUIRED


def test_a_proxy_is_for_https_upstreams() -> None:
    """Through a tunnel to plain http the proxy would read the key."""
    with pytest.raises(ValueError, match=r"^upstream\.proxy: it is for https"):
        HttpUpstream(
            UpstreamEndpoint("127.0.0.1", 80, tls=False), proxy=UpstreamProxy("127.0.0.1", 1)
        )


async def test_an_ipv6_target_has_brackets() -> None:
    """RFC 9110 section 7.2: an authority-form target of an IPv6 address."""
    assert UpstreamEndpoint("::1", 443).tunnel_target == "[::1]:443"


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (b"user:pass", 0o640, "is open to group or others; mend it with: chmod 600"),
        (b"user:pass", 0o604, "is open to group or others"),
        (b"userpass", 0o600, "does not hold user:password"),
        (b":pass", 0o600, "does not hold user:password"),
        (b"", 0o600, "does not hold user:password"),
        (b"user:pass\nmore", 0o600, "must hold one line"),
        (b"user:pa\x00ss", 0o600, "must hold one line"),
        (b"user:pass\r\nX-Injected: 1\r\n", 0o600, "must hold one line"),
        (b"u:" + b"x" * 1024, 0o600, "is longer than 1024 bytes"),
    ],
)
def test_a_bad_credentials_file_is_refused(
    content: bytes, mode: int, says: str, tmp_path: Path
) -> None:
    """The file is named, and what it holds is not told."""
    file = tmp_path / "proxy"
    file.write_bytes(content)
    file.chmod(mode)
    proxy = UpstreamProxy("127.0.0.1", 1, credentials_file=file)
    with pytest.raises(ValueError, match=says) as caught:
        proxy.authorization()
    assert str(file) in str(caught.value)
    assert "pass " not in str(caught.value)


def test_a_credentials_file_that_is_no_file_is_refused(tmp_path: Path) -> None:
    """Missing, a folder, or a FIFO that nobody writes to: no hang."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    for path, says in (
        (tmp_path / "missing", "cannot be read"),
        (tmp_path, "not a regular file"),
        (fifo, "not a regular file"),
    ):
        with pytest.raises(ValueError, match=says):
            UpstreamProxy("127.0.0.1", 1, credentials_file=path).authorization()


def test_a_credentials_line_may_end_as_lines_do(tmp_path: Path) -> None:
    """With LF, CRLF or nothing at the end it is the same line."""
    for end in (b"", b"\n", b"\r\n"):
        file = tmp_path / "proxy"
        file.write_bytes(b"user:pass" + end)
        file.chmod(0o600)
        value = UpstreamProxy("127.0.0.1", 1, credentials_file=file).authorization()
        assert value is not None
        assert bytes(value.reveal()) == b"Basic dXNlcjpwYXNz"
        assert "dXNl" not in repr(value)
