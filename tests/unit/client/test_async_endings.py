"""How requests over the asyncio transport end: refused, cut, late, cancelled."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from fixtures.libraries import AsyncClient, Library, Response
from ironwork.keys.v1 import keys_pb2
from ironwork_client import Profile
from unit.client import scripted_server as scripted
from unit.client.scripted_server import body, end, head, started, status

URL = "https://api.anthropic.com/v1/messages"
Server = scripted.ScriptedServer
Responses = Iterator[keys_pb2.WithKeyResponse]
Code = grpc.StatusCode


async def collect(response: Response, into: list[bytes]) -> None:
    async for part in response.aiter_raw():
        into.append(part)  # noqa: PERF401 - what came before a break must be kept


async def occurs(event: threading.Event) -> bool:
    return await asyncio.to_thread(event.wait, scripted.WAIT_S)


def answered(call: scripted.Call, *parts: bytes) -> Responses:
    yield head(call.number, 200, ("content-type", b"text/plain"))
    for part in parts:
        yield body(call.number, part)
    yield end(call.number)


def waits(stream: scripted.Stream) -> Responses:
    """Takes a call and never answers."""
    stream.start()
    yield started()
    stream.call()
    stream.gone.wait(scripted.WAIT_S)


async def test_a_server_that_ignores_a_cancel_loses_the_stream(
    aclient: AsyncClient, scripted_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing early waits for the call's end for a bounded time, then gives the stream up."""
    monkeypatch.setattr("ironwork_client.transport._async_stream.SETTLE_S", 0.05)

    def script(stream: scripted.Stream) -> Responses:
        stream.start()
        yield started()
        yield head(stream.call().number)
        stream.gone.wait(scripted.WAIT_S)

    scripted_server.script = script
    async with aclient.stream("POST", URL, content=b"q"):
        pass
    assert await occurs(scripted_server.streams[0].gone)


@pytest.mark.parametrize("when", ["head", "body", "upload", "connect"])
async def test_cancelling_the_task_ends_the_request_upstream(
    aclient: AsyncClient, scripted_server: Server, when: str
) -> None:
    """Wherever a task is cancelled, the server sees the stream cancelled."""
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()

    def script(stream: scripted.Stream) -> Responses:
        stream.start()
        if when != "connect":
            yield started()
            first = stream.next().head.call
            if when == "body":
                yield head(first)
                yield body(first, b"x")
        loop.call_soon_threadsafe(reached.set)
        stream.gone.wait(scripted.WAIT_S)

    async def endless() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    scripted_server.script = script
    content = endless() if when == "upload" else b"q"
    task = asyncio.create_task(aclient.post(URL, content=content))
    async with asyncio.timeout(scripted.WAIT_S):
        await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await occurs(scripted_server.streams[0].gone)


async def test_a_refusal_is_an_answer_and_the_stream_stays_usable(
    aclient: AsyncClient, scripted_server: Server
) -> None:
    """REFUSED becomes a response in Anthropic's shape."""

    def reply(call: scripted.Call) -> Responses:
        error = status(Code.FAILED_PRECONDITION, "NO_KEY")
        yield end(call.number, keys_pb2.OUTCOME_REFUSED, error=error, sent=False)

    scripted_server.script = scripted.serve(reply)
    for _ in range(2):
        response = await aclient.post(URL, content=b"q")
        assert response.status_code == 403
        assert response.json()["error"]["type"] == "permission_error"
        assert response.headers["x-ironwork-reason"] == "NO_KEY"
    assert len(scripted_server.streams) == 1


async def test_a_stream_that_is_refused_answers_alike(
    aclient: AsyncClient, scripted_server: Server
) -> None:
    """An RPC that ends with PERMISSION_DENIED is a 403 as well."""

    def script(stream: scripted.Stream) -> Responses:
        stream.start()
        stream.abort(status(Code.PERMISSION_DENIED, "PERMISSION_DENIED"))
        yield started()

    scripted_server.script = script
    response = await aclient.post(URL, content=b"q")
    assert (response.status_code, response.headers["x-should-retry"]) == (403, "false")


@pytest.mark.parametrize("how", ["failed", "broken", "closed"])
async def test_a_cut_answer_is_never_a_clean_end(
    library: Library, aclient: AsyncClient, scripted_server: Server, how: str
) -> None:
    """Whatever cuts an answer raises RemoteProtocolError after the bytes that came."""

    def script(stream: scripted.Stream) -> Responses:
        stream.start()
        yield started()
        call = stream.call()
        yield head(call.number)
        yield body(call.number, b"half")
        if how == "failed":
            error = status(Code.UNAVAILABLE, "UPSTREAM_CUT")
            yield end(call.number, keys_pb2.OUTCOME_FAILED, error=error)
            stream.gone.wait(scripted.WAIT_S)
        elif how == "broken":
            stream.abort(status(Code.UNAVAILABLE))

    scripted_server.script = script
    got: list[bytes] = []
    async with aclient.stream("POST", URL, content=b"q") as response:
        with pytest.raises(library.http.RemoteProtocolError, match="not whole"):
            await collect(response, got)
    assert got == [b"half"]


async def test_a_stream_that_breaks_in_a_call_is_not_repeated(
    library: Library, aclient: AsyncClient, scripted_server: Server
) -> None:
    """What may have reached Anthropic is never sent twice."""

    def script(stream: scripted.Stream) -> Responses:
        stream.start()
        yield started()
        stream.call()
        stream.abort(status(Code.UNAVAILABLE))

    scripted_server.script = script
    with pytest.raises(library.http.ReadError):
        await aclient.post(URL, content=b"q")
    assert len(scripted_server.streams) == 1


async def test_silence_is_a_read_timeout_and_ends_the_call_upstream(
    library: Library, aclient: AsyncClient, scripted_server: Server
) -> None:
    """Past the read timeout the request fails and the server sees the stream cancelled."""
    scripted_server.script = waits
    with pytest.raises(library.http.ReadTimeout):
        await aclient.post(URL, content=b"q", timeout=library.http.Timeout(10, read=0.1))
    assert await occurs(scripted_server.streams[0].gone)


async def test_a_server_that_does_not_start_is_a_connect_timeout(
    library: Library, aclient: AsyncClient, scripted_server: Server
) -> None:
    """On a new connection nothing of the request leaves before Started."""

    def script(stream: scripted.Stream) -> Responses:
        stream.start()
        stream.gone.wait(scripted.WAIT_S)
        return
        yield

    scripted_server.script = script
    with pytest.raises(library.http.ConnectTimeout):
        await aclient.post(URL, content=b"q", timeout=library.http.Timeout(10, connect=0.1))


async def test_a_server_that_takes_nothing_is_a_write_timeout(
    library: Library, aclient: AsyncClient, scripted_server: Server
) -> None:
    """An upload that flow control holds fails past the write timeout."""

    def script(stream: scripted.Stream) -> Responses:
        stream.start()
        yield started()
        stream.gone.wait(scripted.WAIT_S)

    scripted_server.script = script
    limits = library.http.Timeout(10, write=0.2)
    with pytest.raises(library.http.WriteTimeout):
        await aclient.post(URL, content=b"x" * (16 << 20), timeout=limits)


async def test_a_large_upload_streams(aclient: AsyncClient, scripted_server: Server) -> None:
    """Several megabytes from an iterator arrive whole, in messages of at most 16 KiB."""
    chunk = bytes(range(256)) * 300

    async def upload() -> AsyncIterator[bytes]:
        for _ in range(60):
            yield chunk

    scripted_server.script = scripted.serve(lambda call: answered(call, b"%d" % len(call.body)))
    response = await aclient.post(URL, content=upload())
    assert response.content == b"%d" % (60 * len(chunk))


async def test_an_answer_ends_an_upload_early(
    library: Library, aclient: AsyncClient, scripted_server: Server
) -> None:
    """When ResponseEnd arrives during the upload, the aclient stops, sends `end`, and reuses."""
    closed = asyncio.Event()

    async def upload() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 16384
        finally:
            closed.set()

    def script(stream: scripted.Stream) -> Responses:
        stream.start()
        yield started()
        number = stream.next().head.call
        assert stream.next().HasField("body")
        yield head(number, 413)
        yield body(number, b"too large")
        yield end(number)
        while not stream.next().HasField("end"):
            pass
        yield from answered(stream.call(), b"next")

    scripted_server.script = script
    response = await aclient.post(URL, content=upload())
    assert (response.status_code, response.content) == (413, b"too large")
    assert closed.is_set() or library.name == "httpx"  # which never closes what it was given
    assert (await aclient.post(URL, content=b"q")).content == b"next"
    assert len(scripted_server.streams) == 1


def refused_early(stream: scripted.Stream) -> Responses:
    """Answers a call whole before its upload ends, then the next one."""
    stream.start()
    yield started()
    number = stream.next().head.call
    assert stream.next().HasField("body")
    yield head(number, 413)
    yield end(number)
    while not stream.next().HasField("end"):
        pass
    yield from answered(stream.call(), b"next")


@pytest.mark.timeout(30)
async def test_a_body_that_gets_stuck_does_not_hold_up_a_whole_answer(
    aclient: AsyncClient, scripted_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the answer is whole, an iterator that would yield no more is cancelled, not waited for,
    and the stream goes on."""
    monkeypatch.setattr("ironwork_client.transport._async_stream.SETTLE_S", 600)
    cancelled = asyncio.Event()

    async def upload() -> AsyncIterator[bytes]:
        yield b"x"
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    scripted_server.script = refused_early
    assert (await aclient.post(URL, content=upload())).status_code == 413
    assert cancelled.is_set()
    assert (await aclient.post(URL, content=b"q")).content == b"next"
    assert len(scripted_server.streams) == 1


@pytest.mark.timeout(30)
async def test_a_body_that_ignores_its_cancellation_is_waited_for_briefly(
    aclient: AsyncClient, scripted_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An iterator that lingers holds its answer up for a bounded time and loses the stream."""
    monkeypatch.setattr("ironwork_client.transport._async_stream.SETTLE_S", 0.05)
    released = asyncio.Event()

    async def upload() -> AsyncIterator[bytes]:
        yield b"x"
        try:
            await asyncio.Event().wait()
        finally:
            await released.wait()

    scripted_server.script = refused_early
    assert (await aclient.post(URL, content=upload())).status_code == 413
    assert not released.is_set()
    released.set()
    assert await occurs(scripted_server.streams[0].gone)


async def test_what_the_callers_body_raises_reaches_the_caller(
    aclient: AsyncClient, scripted_server: Server
) -> None:
    """An upload that fails on this side is raised as it is and cancels the call."""

    async def upload() -> AsyncIterator[bytes]:
        yield b"half"
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await aclient.post(URL, content=upload())
    (stream,) = await asyncio.to_thread(scripted_server.wait_streams, 1)
    assert await occurs(stream.gone)


async def test_a_closed_transport_ends_what_is_open(
    library: Library, profile: Profile, scripted_server: Server
) -> None:
    """aclose() cancels streams in use; their bodies fail, and nothing can be sent afterwards."""

    def script(stream: scripted.Stream) -> Responses:
        stream.start()
        yield started()
        yield head(stream.call().number)
        stream.gone.wait(scripted.WAIT_S)

    scripted_server.script = script
    transport = library.async_transport(profile)
    request = library.http.Request("POST", URL, content=b"q")
    response = await transport.handle_async_request(request)
    await transport.aclose()
    with pytest.raises(library.http.RemoteProtocolError):
        await response.aread()
    with pytest.raises(library.http.LocalProtocolError, match="closed"):
        await transport.handle_async_request(request)


async def test_closing_during_an_upload_cancels_the_stream(
    aclient: AsyncClient, scripted_server: Server
) -> None:
    """There is no Cancel during an upload: the RPC itself is cancelled."""

    async def upload() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 16384

    def script(stream: scripted.Stream) -> Responses:
        stream.start()
        yield started()
        yield head(stream.next().head.call)
        stream.gone.wait(scripted.WAIT_S)

    scripted_server.script = script
    async with aclient.stream("POST", URL, content=upload()) as response:
        assert response.status_code == 200
    assert await occurs(scripted_server.streams[0].gone)


async def test_a_body_that_is_gone_is_not_sent_again(
    aclient: AsyncClient, scripted_server: Server
) -> None:
    """After STREAM_CLOSING a one-shot body gives the refusal itself, marked as safe to repeat."""

    def reply(call: scripted.Call) -> Responses:
        refusal = status(Code.UNAVAILABLE, "STREAM_CLOSING")
        yield end(call.number, keys_pb2.OUTCOME_REFUSED, error=refusal, sent=False)

    async def once() -> AsyncIterator[bytes]:
        yield b"once"

    scripted_server.script = scripted.serve(reply)
    response = await aclient.post(URL, content=once())
    assert (response.status_code, response.headers["x-should-retry"]) == (503, "true")
    assert len(scripted_server.streams) == 1


async def test_closing_wakes_whoever_waits_for_a_stream(
    library: Library, profile: Profile, scripted_server: Server
) -> None:
    """A request that waits for a free stream is not left waiting by aclose()."""
    scripted_server.script = waits
    transport = library.async_transport(profile, max_streams=1, max_idle_streams=0)

    async def ask() -> Response:
        return await transport.handle_async_request(library.http.Request("POST", URL, content=b"q"))

    asked = [asyncio.create_task(ask()), asyncio.create_task(ask())]
    (stream,) = await asyncio.to_thread(scripted_server.wait_streams, 1)
    await asyncio.to_thread(stream.begun.get, timeout=scripted.WAIT_S)
    await transport.aclose()
    first, second = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(first, library.http.ReadError)
    assert isinstance(second, library.http.LocalProtocolError)


async def test_a_sync_body_is_refused(library: Library, profile: Profile) -> None:
    """The asyncio transport does not block its loop for a sync body."""
    transport = library.async_transport(profile)
    request = library.http.Request("POST", URL, content=iter([b"x"]))
    with pytest.raises(library.http.LocalProtocolError, match="sync body"):
        await transport.handle_async_request(request)
