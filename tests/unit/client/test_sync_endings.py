"""How requests over the sync transport end: refused, cut, late, abandoned."""

import contextlib
import threading
from collections.abc import Iterator

import grpc
import pytest

from fixtures.libraries import Client, Library
from ironwork.keys.v1 import keys_pb2
from ironwork_client import Profile
from unit.client import scripted_server as scripted
from unit.client.scripted_server import body, end, head, started, status

pytestmark = pytest.mark.usefixtures("no_thread_left")
URL = "https://api.anthropic.com/v1/messages"
Server = scripted.ScriptedServer
Code = grpc.StatusCode


def answered(call: scripted.Call, *parts: bytes) -> Iterator[keys_pb2.WithKeyResponse]:
    yield head(call.number, 200, ("content-type", b"text/plain"))
    for part in parts:
        yield body(call.number, part)
    yield end(call.number)


def test_a_server_that_ignores_a_cancel_loses_the_stream(
    client: Client, scripted_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing early waits for the call's end for a bounded time, then gives the stream up."""
    monkeypatch.setattr("ironwork_client.transport._sync_stream.SETTLE_S", 0.05)

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        yield started()
        call = stream.call()
        yield head(call.number)
        stream.gone.wait(scripted.WAIT_S)

    scripted_server.script = script
    with client.stream("POST", URL, content=b"q"):
        pass
    assert scripted_server.streams[0].gone.wait(scripted.WAIT_S)


def test_a_body_that_is_gone_is_not_sent_again(client: Client, scripted_server: Server) -> None:
    """After STREAM_CLOSING a one-shot body gives the refusal itself, marked as safe to repeat."""

    def reply(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
        refusal = status(Code.UNAVAILABLE, "STREAM_CLOSING")
        yield end(call.number, keys_pb2.OUTCOME_REFUSED, error=refusal, sent=False)

    scripted_server.script = scripted.serve(reply)
    response = client.post(URL, content=iter([b"once"]))
    assert response.status_code == 503
    assert response.headers["x-should-retry"] == "true"
    assert len(scripted_server.streams) == 1


REFUSALS = [
    (Code.PERMISSION_DENIED, None, 403, "permission_error", "false", None),
    (Code.UNAUTHENTICATED, None, 403, "permission_error", "false", None),
    (Code.FAILED_PRECONDITION, None, 403, "permission_error", "false", None),
    (Code.INVALID_ARGUMENT, None, 400, "invalid_request_error", "false", None),
    (Code.RESOURCE_EXHAUSTED, 2, 429, "rate_limit_error", None, "2"),
    (Code.RESOURCE_EXHAUSTED, None, 429, "rate_limit_error", "false", None),
    (Code.UNAVAILABLE, 3, 503, "api_error", "true", "3"),
    (Code.DATA_LOSS, None, 500, "api_error", "false", None),
]


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_an_answer_in_anthropics_shape(
    client: Client,
    scripted_server: Server,
    case: tuple[grpc.StatusCode, int | None, int, str, str | None, str | None],
) -> None:
    """Status, error type and retry headers follow from the code; the stream stays usable."""
    code, retry_s, http, kind, again, after = case

    def reply(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
        error = status(code, "SOME_REASON", retry_s=retry_s, message="Not now.")
        yield end(call.number, keys_pb2.OUTCOME_REFUSED, error=error, sent=False)

    scripted_server.script = scripted.serve(reply)
    for _ in range(2):
        response = client.post(URL, content=b"q")
        assert response.status_code == http
        assert response.json() == {
            "type": "error",
            "error": {"type": kind, "message": "Ironwork: Not now."},
            "request_id": None,
        }
        assert response.headers["x-ironwork-reason"] == "SOME_REASON"
        assert response.headers.get("x-should-retry") == again
        assert response.headers.get("retry-after") == after
        report = response.extensions["ironwork"]
        assert (report.outcome, report.error.reason) == ("REFUSED", "SOME_REASON")
    assert len(scripted_server.streams) == 1


@pytest.mark.parametrize("before_started", [True, False])
def test_a_stream_that_is_refused_answers_alike(
    client: Client, scripted_server: Server, before_started: bool
) -> None:
    """An RPC that ends with PERMISSION_DENIED is a 403 as well."""

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        if not before_started:
            yield started()
            stream.call()
        stream.abort(status(Code.PERMISSION_DENIED, "PERMISSION_DENIED"))
        yield started()

    scripted_server.script = script
    response = client.post(URL, content=b"q")
    assert response.status_code == 403
    assert response.headers["x-ironwork-reason"] == "PERMISSION_DENIED"
    assert response.headers["x-should-retry"] == "false"
    assert response.extensions["ironwork"].complete


@pytest.mark.parametrize("how", ["failed", "broken", "closed"])
def test_a_cut_answer_is_never_a_clean_end(
    library: Library, client: Client, scripted_server: Server, how: str
) -> None:
    """Whatever cuts an answer raises RemoteProtocolError after the bytes that came."""

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
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
    with client.stream("POST", URL, content=b"q") as response:
        with pytest.raises(library.http.RemoteProtocolError, match="not whole"):
            got.extend(response.iter_raw())
        assert response.extensions["ironwork"].outcome in {"FAILED", ""}
    assert got == [b"half"]


@pytest.mark.parametrize(("sent", "error"), [(False, "ConnectError"), (True, "ReadError")])
def test_a_failure_before_the_answer_says_whether_anthropic_was_asked(
    library: Library, client: Client, scripted_server: Server, sent: bool, error: str
) -> None:
    """FAILED without an answer is a ConnectError where nothing was sent upstream."""

    def reply(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
        cause = status(Code.UNAVAILABLE, "UPSTREAM")
        yield end(call.number, keys_pb2.OUTCOME_FAILED, error=cause, sent=sent)

    scripted_server.script = scripted.serve(reply)
    with pytest.raises(getattr(library.http, error)):
        client.post(URL, content=b"q")


def test_a_stream_that_breaks_in_a_call_is_not_repeated(
    library: Library, client: Client, scripted_server: Server
) -> None:
    """What may have reached Anthropic is never sent twice."""

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        yield started()
        stream.call()
        stream.abort(status(Code.UNAVAILABLE, "CLIENT_STALLED"))

    scripted_server.script = script
    with pytest.raises(library.http.ReadError):
        client.post(URL, content=b"q")
    assert len(scripted_server.streams) == 1


def test_a_message_out_of_turn_is_a_protocol_error(
    library: Library, client: Client, scripted_server: Server
) -> None:
    """A server that does not keep to the grammar is not believed."""

    def reply(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
        yield body(call.number, b"no head")

    scripted_server.script = scripted.serve(reply)
    with pytest.raises(library.http.RemoteProtocolError, match="out of turn"):
        client.post(URL, content=b"q")


def test_silence_is_a_read_timeout_and_ends_the_call_upstream(
    library: Library, client: Client, scripted_server: Server
) -> None:
    """Past the read timeout the request fails and the server sees the stream cancelled."""

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        yield started()
        stream.call()
        stream.gone.wait(scripted.WAIT_S)
        return
        yield

    scripted_server.script = script
    with pytest.raises(library.http.ReadTimeout):
        client.post(URL, content=b"q", timeout=library.http.Timeout(10, read=0.1))
    assert scripted_server.streams[0].gone.wait(scripted.WAIT_S)


def test_a_server_that_does_not_start_is_a_connect_timeout(
    library: Library, client: Client, scripted_server: Server
) -> None:
    """On a new connection nothing of the request leaves before Started."""

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        with contextlib.suppress(scripted.ClientGone):
            pytest.fail(f"sent {stream.next()}")
        return
        yield

    scripted_server.script = script
    with pytest.raises(library.http.ConnectTimeout):
        client.post(URL, content=b"q", timeout=library.http.Timeout(10, connect=0.1))


def test_a_server_that_takes_nothing_is_a_write_timeout(
    library: Library, client: Client, scripted_server: Server
) -> None:
    """An upload that flow control holds fails past the write timeout."""

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        yield started()
        stream.gone.wait(scripted.WAIT_S)

    scripted_server.script = script
    with pytest.raises(library.http.WriteTimeout):
        client.post(URL, content=b"x" * (16 << 20), timeout=library.http.Timeout(10, write=0.2))


def test_a_large_upload_streams(client: Client, scripted_server: Server) -> None:
    """Several megabytes from an iterator arrive whole, in messages of at most 16 KiB."""
    chunk = bytes(range(256)) * 300

    def reply(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
        assert not call.head.HasField("content_length")
        yield from answered(call, b"%d" % len(call.body))

    scripted_server.script = scripted.serve(reply)
    response = client.post(URL, content=(chunk for _ in range(60)))
    assert response.content == b"%d" % (60 * len(chunk))


def test_an_answer_ends_an_upload_early(client: Client, scripted_server: Server) -> None:
    """When ResponseEnd arrives during the upload, the client stops, sends `end`, and reuses."""
    taken = 0
    first = threading.Event()

    def upload() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 16384
            if taken > 3:
                first.set()

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
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
    response = client.post(URL, content=upload())
    assert (response.status_code, response.content) == (413, b"too large")
    assert client.post(URL, content=b"q").content == b"next"
    assert len(scripted_server.streams) == 1


@pytest.mark.timeout(30)
def test_a_body_that_gets_stuck_holds_up_a_whole_answer_for_a_bounded_time(
    client: Client, scripted_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread cannot be interrupted: an iterator that yields no more loses the stream, and the
    answer is whole."""
    monkeypatch.setattr("ironwork_client.transport._sync_stream.SETTLE_S", 0.05)
    stuck, released = threading.Event(), threading.Event()

    def upload() -> Iterator[bytes]:
        yield b"x"
        stuck.set()
        released.wait(scripted.WAIT_S)

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        yield started()
        number = stream.next().head.call
        # An upload that nobody has begun to read would end at once, and the stream go on.
        assert stuck.wait(scripted.WAIT_S)
        yield head(number, 413)
        yield body(number, b"too large")
        yield end(number)
        stream.gone.wait(scripted.WAIT_S)

    scripted_server.script = script
    assert client.post(URL, content=upload()).content == b"too large"
    assert not released.is_set()
    released.set()
    assert scripted_server.streams[0].gone.wait(scripted.WAIT_S)


@pytest.mark.timeout(30)
def test_a_stream_that_ends_with_its_answer_is_not_waited_for(
    client: Client, scripted_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload that was overtaken by the end of the RPC does not hold up the answer's end."""
    monkeypatch.setattr("ironwork_client.transport._sync_stream.SETTLE_S", 600)

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        yield started()
        number = stream.next().head.call
        yield head(number)
        yield body(number, b"all")
        yield end(number)

    scripted_server.script = script
    assert client.post(URL, content=b"x" * (16 << 20)).content == b"all"


def test_what_the_callers_body_raises_reaches_the_caller(
    client: Client, scripted_server: Server
) -> None:
    """An upload that fails on this side is raised as it is and cancels the call."""

    def upload() -> Iterator[bytes]:
        yield b"half"
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        client.post(URL, content=upload())
    assert scripted_server.wait_streams(1)[0].gone.wait(scripted.WAIT_S)


def test_a_closed_transport_ends_what_is_open(
    library: Library, profile: Profile, scripted_server: Server
) -> None:
    """close() cancels streams in use; their bodies fail, and nothing can be sent afterwards."""

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        yield started()
        call = stream.call()
        yield head(call.number)
        stream.gone.wait(scripted.WAIT_S)

    scripted_server.script = script
    transport = library.transport(profile)
    request = library.http.Request("POST", URL, content=b"q")
    response = transport.handle_request(request)
    transport.close()
    with pytest.raises(library.http.RemoteProtocolError):
        response.read()
    with pytest.raises(library.http.LocalProtocolError, match="closed"):
        transport.handle_request(request)


def test_an_async_body_is_refused(library: Library, profile: Profile) -> None:
    """The sync transport cannot read an async body, and says which one can."""

    async def upload() -> object:
        yield b"x"

    transport = library.transport(profile)
    with pytest.raises(library.http.LocalProtocolError, match="AsyncClient"):
        transport.handle_request(library.http.Request("POST", URL, content=upload()))
    transport.close()


def test_closing_during_an_upload_cancels_the_stream(
    client: Client, scripted_server: Server
) -> None:
    """There is no Cancel during an upload: the RPC itself is cancelled."""

    def upload() -> Iterator[bytes]:
        while True:
            yield b"x" * 16384

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        yield started()
        yield head(stream.next().head.call)
        stream.gone.wait(scripted.WAIT_S)

    scripted_server.script = script
    with client.stream("POST", URL, content=upload()) as response:
        assert response.status_code == 200
    assert scripted_server.streams[0].gone.wait(scripted.WAIT_S)
