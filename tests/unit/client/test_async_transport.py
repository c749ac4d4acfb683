"""The asyncio transport over a real gRPC stream."""

import asyncio
import threading
from collections.abc import Iterator

import grpc
import pytest

from fixtures.libraries import AsyncClient, AsyncTransport, Library
from ironwork.keys.v1 import keys_pb2
from ironwork_client import Profile
from unit.client import scripted_server as scripted
from unit.client.scripted_server import body, end, go_away, head, started, status

URL = "https://api.anthropic.com/v1/messages"
Server = scripted.ScriptedServer
Responses = Iterator[keys_pb2.WithKeyResponse]
Code = grpc.StatusCode


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


async def test_a_request_and_its_answer_pass_unchanged(
    aclient: AsyncClient, scripted_server: Server
) -> None:
    """Method, raw path, query and body arrive as they were; the report is complete."""
    calls: list[scripted.Call] = []

    def reply(call: scripted.Call) -> Responses:
        calls.append(call)
        yield from answered(call, b"hello ", b"world")

    scripted_server.script = scripted.serve(reply)
    for number in (1, 2, 3):
        response = await aclient.post(f"{URL}?beta=true", content=b"question")
        assert (response.status_code, response.content) == (200, b"hello world")
        report = response.extensions["ironwork"]
        assert (report.complete, report.key_name) == (True, "workspaces/acme/keys/k1")
        assert (calls[-1].number, calls[-1].body) == (number, b"question")
        assert (calls[-1].head.path, calls[-1].head.query) == ("/v1/messages", "beta=true")
    assert len(scripted_server.streams) == 1


async def test_two_at_once_use_two_streams(aclient: AsyncClient, scripted_server: Server) -> None:
    """Requests that overlap have streams of their own."""
    both = threading.Barrier(2, timeout=scripted.WAIT_S)

    def reply(call: scripted.Call) -> Responses:
        both.wait()
        yield from answered(call, call.body)

    scripted_server.script = scripted.serve(reply)
    answers = await asyncio.gather(*(aclient.post(URL, content=data) for data in (b"a", b"b")))
    assert [answer.content for answer in answers] == [b"a", b"b"]
    assert len(scripted_server.streams) == 2


async def test_an_answer_is_delivered_as_it_comes(
    aclient: AsyncClient, scripted_server: Server
) -> None:
    """A part of the body reaches the caller before the next one exists."""
    seen = threading.Event()

    def reply(call: scripted.Call) -> Responses:
        yield head(call.number)
        yield body(call.number, b"first")
        assert seen.wait(scripted.WAIT_S)
        yield body(call.number, b"second")
        yield end(call.number)

    scripted_server.script = scripted.serve(reply)
    async with aclient.stream("POST", URL, content=b"q") as response:
        got = []
        async for part in response.aiter_raw():
            got.append(part)
            seen.set()
    assert got == [b"first", b"second"]


async def test_closing_early_cancels_the_call_and_keeps_the_stream(
    aclient: AsyncClient, scripted_server: Server
) -> None:
    """A response closed early sends Cancel; the stream serves the next request."""

    def script(stream: scripted.Stream) -> Responses:
        stream.start()
        yield started()
        call = stream.call()
        yield head(call.number)
        yield body(call.number, b"endless")
        assert stream.next().cancel.call == call.number
        yield body(call.number, b"on its way")
        yield end(call.number, keys_pb2.OUTCOME_CANCELLED)
        yield from answered(stream.call(), b"next")

    scripted_server.script = script
    async with aclient.stream("POST", URL, content=b"q"):
        pass
    assert (await aclient.post(URL, content=b"q")).content == b"next"
    assert len(scripted_server.streams) == 1


async def test_after_go_away_the_next_request_opens_a_new_stream(
    aclient: AsyncClient, scripted_server: Server
) -> None:
    """GoAway lets the call in flight finish; the stream is not used again."""

    def script(stream: scripted.Stream) -> Responses:
        stream.start()
        yield started()
        call = stream.call()
        yield head(call.number)
        yield go_away()
        yield body(call.number, b"%d" % stream.number)
        yield end(call.number)
        stream.gone.wait(scripted.WAIT_S)

    scripted_server.script = script
    assert (await aclient.post(URL, content=b"q")).content == b"0"
    assert await occurs(scripted_server.streams[0].gone)
    assert (await aclient.post(URL, content=b"q")).content == b"1"


async def test_an_idle_stream_leaves_when_it_is_asked_to(
    aclient: AsyncClient, scripted_server: Server
) -> None:
    """GoAway on an idle stream ends it at once, so that a draining server need not wait."""
    leave = threading.Event()

    def script(stream: scripted.Stream) -> Responses:
        stream.start()
        yield started()
        yield from answered(stream.call(), b"%d" % stream.number)
        assert leave.wait(scripted.WAIT_S)
        yield go_away()
        stream.gone.wait(scripted.WAIT_S)

    scripted_server.script = script
    assert (await aclient.post(URL, content=b"q")).content == b"0"
    leave.set()
    assert await occurs(scripted_server.streams[0].gone)
    assert (await aclient.post(URL, content=b"q")).content == b"1"


async def test_a_call_that_crossed_a_go_away_is_sent_again_once(
    aclient: AsyncClient, scripted_server: Server
) -> None:
    """STREAM_CLOSING says that nothing went upstream: a body in memory goes to a new stream, and a
    second refusal is reported.
    """

    def reply(call: scripted.Call) -> Responses:
        refusal = status(Code.UNAVAILABLE, "STREAM_CLOSING")
        yield end(call.number, keys_pb2.OUTCOME_REFUSED, error=refusal, sent=False)

    scripted_server.script = scripted.serve(reply)
    response = await aclient.post(URL, content=b"q")
    assert (response.status_code, response.headers["x-should-retry"]) == (503, "true")
    assert len(scripted_server.streams) == 2


async def test_a_stream_that_ends_well_after_go_away_has_taken_nothing(
    aclient: AsyncClient, scripted_server: Server
) -> None:
    """A call that a server reads gets a ResponseEnd: without one, the request goes elsewhere."""

    def script(stream: scripted.Stream) -> Responses:
        stream.start()
        yield started()
        yield from answered(stream.call(), b"%d" % stream.number)
        if stream.number == 0:
            stream.call()
            yield go_away()
        else:
            stream.gone.wait(scripted.WAIT_S)

    scripted_server.script = script
    assert (await aclient.post(URL, content=b"q")).content == b"0"
    assert (await aclient.post(URL, content=b"q")).content == b"1"


async def wait_until_noticed(transport: AsyncTransport) -> None:
    """Until the transport has dropped the streams of a server that went away."""
    (pool,) = transport._core._pools.values()
    async with asyncio.timeout(scripted.WAIT_S):
        while pool._open:  # noqa: ASYNC110 - nothing outside tells
            await asyncio.sleep(0.005)


async def test_a_broken_idle_stream_is_replaced(
    library: Library, aclient: AsyncClient, atransport: AsyncTransport, scripted_server: Server
) -> None:
    """A server that was restarted between two requests is found again; one that is away is a
    ConnectError.
    """
    scripted_server.script = scripted.serve(lambda call: answered(call, b"x"))
    assert (await aclient.post(URL, content=b"q")).content == b"x"
    port = scripted_server.port
    await asyncio.to_thread(scripted_server.stop)
    await wait_until_noticed(atransport)
    with pytest.raises(library.http.ConnectError):
        await aclient.post(URL, content=b"q")
    scripted_server.start(port)
    assert (await aclient.post(URL, content=b"q")).content == b"x"


async def test_no_other_host_is_served(library: Library, aclient: AsyncClient) -> None:
    """A request for anywhere else fails before anything is sent."""
    with pytest.raises(library.http.UnsupportedProtocol):
        await aclient.get("https://example.com/v1/models")


async def test_requests_beyond_the_bound_wait_for_a_stream(
    library: Library, profile: Profile, scripted_server: Server
) -> None:
    """With all streams in use a request waits: for a freed one, or for the pool timeout."""
    scripted_server.script = scripted.serve(lambda call: answered(call, b"x"))
    transport = library.async_transport(profile, max_streams=1, max_idle_streams=1)
    async with library.http.AsyncClient(transport=transport) as client:
        async with client.stream("POST", URL, content=b"q") as response:
            with pytest.raises(library.http.PoolTimeout, match="max_streams"):
                await client.post(URL, content=b"q", timeout=library.http.Timeout(10, pool=0.05))
            gone = asyncio.create_task(client.post(URL, content=b"q"))
            waiting = asyncio.create_task(client.post(URL, content=b"q"))
            await asyncio.sleep(0)
            gone.cancel()
            await response.aread()
        assert (await waiting).content == b"x"
        with pytest.raises(asyncio.CancelledError):
            await gone
    assert len(scripted_server.streams) == 1


def test_one_transport_serves_several_event_loops(
    library: Library, profile: Profile, scripted_server: Server
) -> None:
    """Each loop has channels and streams of its own, made when they are needed."""
    scripted_server.script = scripted.serve(lambda call: answered(call, b"x"))
    transport = library.async_transport(profile)

    async def ask() -> bytes:
        request = library.http.Request("POST", URL, content=b"q")
        response = await transport.handle_async_request(request)
        data = await response.aread()
        await transport.aclose()
        return data

    assert asyncio.run(ask()) == b"x"
    assert asyncio.run(ask()) == b"x"
    assert len(scripted_server.streams) == 2


async def test_a_profile_whose_files_are_gone_is_a_connect_error(
    library: Library, aclient: AsyncClient, profile: Profile
) -> None:
    """The error names the setting; once mended, the same transport works."""
    pem = profile.ca.read_bytes()
    profile.ca.unlink()
    with pytest.raises(library.http.ConnectError, match=r"^ca: "):
        await aclient.post(URL, content=b"q")
    profile.ca.write_bytes(pem)
    assert (await aclient.post(URL, content=b"q")).status_code == 200
