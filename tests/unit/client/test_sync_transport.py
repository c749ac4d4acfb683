"""The sync transport over a real gRPC stream."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx2
import pytest

from ironwork.keys.v1 import keys_pb2
from ironwork_client import Profile, WithKeyTransport
from unit.client import scripted_server as scripted
from unit.client.scripted_server import body, end, go_away, head, started, status

pytestmark = pytest.mark.usefixtures("no_thread_left")
URL = "https://api.anthropic.com/v1/messages"
Server = scripted.ScriptedServer
Code = grpc.StatusCode


@pytest.fixture
def transport(profile: Profile) -> WithKeyTransport:
    return WithKeyTransport(profile, task="t1", agent="a1")


@pytest.fixture
def client(transport: WithKeyTransport) -> Iterator[httpx2.Client]:
    with httpx2.Client(transport=transport) as made:
        yield made


def wait_until_noticed(transport: WithKeyTransport) -> None:
    """Until the transport has dropped the streams of a server that went away."""
    pool = transport._core._pool
    with pool._changed:
        assert pool._changed.wait_for(lambda: not pool._open, scripted.WAIT_S)


def answered(call: scripted.Call, *parts: bytes) -> Iterator[keys_pb2.WithKeyResponse]:
    yield head(call.number, 200, ("content-type", b"text/plain"))
    for part in parts:
        yield body(call.number, part)
    yield end(call.number)


def test_a_request_and_its_answer_pass_unchanged(
    client: httpx2.Client, scripted_server: Server
) -> None:
    """Method, raw path, query, headers and body arrive as they were; so does the answer."""
    calls: list[scripted.Call] = []

    def reply(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
        calls.append(call)
        yield head(call.number, 418, ("Request-Id", b"req_1"), ("X-Two", b"1"), ("X-Two", b"2"))
        yield body(call.number, b"hello ")
        yield body(call.number, b"world")
        yield end(call.number)

    scripted_server.script = scripted.serve(reply)
    response = client.post(
        f"{URL}%2Fx?beta=true&x=%2F",
        content=b"question",
        headers={"X-Api-Key": "no", "X-Mine": "1"},
    )
    assert (response.status_code, response.content) == (418, b"hello world")
    assert response.headers.raw == [(b"Request-Id", b"req_1"), (b"X-Two", b"1"), (b"X-Two", b"2")]
    (call,) = calls
    assert (call.head.method, call.head.path) == ("POST", "/v1/messages%2Fx")
    assert (call.head.query, call.head.content_length) == ("beta=true&x=%2F", 8)
    assert call.body == b"question"
    assert ("X-Mine", b"1") in call.headers
    assert {name.lower() for name, _ in call.headers}.isdisjoint({"x-api-key", "host"})


def test_a_report_says_which_key_served(client: httpx2.Client, scripted_server: Server) -> None:
    """Once the body is consumed, the response's report is complete."""
    scripted_server.script = scripted.serve(lambda call: answered(call, b"x"))
    with client.stream("POST", URL, content=b"q") as response:
        report = response.extensions["ironwork"]
        assert not report.complete
        response.read()
    assert report.complete
    assert (report.outcome, report.key_mask) == ("COMPLETED", "sk-ant-api…wxyz")
    assert (report.usage.input_tokens, report.usage.output_tokens) == (7, 11)
    assert (report.audit.origin, report.audit.index) == ("test.log", 5)


def test_requests_in_turn_share_a_stream(client: httpx2.Client, scripted_server: Server) -> None:
    """An idle stream is used again and its call numbers grow."""
    numbers: list[int] = []

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        start = stream.start()
        assert (start.parent, start.task, start.agent) == ("workspaces/acme", "t1", "a1")
        yield started()
        while True:
            call = stream.call()
            numbers.append(call.number)
            yield from answered(call, b"x")

    scripted_server.script = script
    for _ in range(3):
        assert client.post(URL, content=b"q").content == b"x"
    assert client.get("https://api.anthropic.com/v1/models").content == b"x"
    assert numbers == [1, 2, 3, 4]
    assert len(scripted_server.streams) == 1


def test_two_at_once_use_two_streams(client: httpx2.Client, scripted_server: Server) -> None:
    """Requests that overlap have streams of their own."""
    both = threading.Barrier(2, timeout=scripted.WAIT_S)

    def reply(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
        both.wait()
        yield from answered(call, call.body)

    scripted_server.script = scripted.serve(reply)
    with ThreadPoolExecutor(2) as pool:
        answers = pool.map(lambda data: client.post(URL, content=data).content, (b"a", b"b"))
        assert sorted(answers) == [b"a", b"b"]
    assert len(scripted_server.streams) == 2


def test_an_answer_is_delivered_as_it_comes(client: httpx2.Client, scripted_server: Server) -> None:
    """A part of the body reaches the caller before the next one exists."""
    seen = threading.Event()

    def reply(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
        yield head(call.number)
        yield body(call.number, b"first")
        assert seen.wait(scripted.WAIT_S)
        yield body(call.number, b"second")
        yield end(call.number)

    scripted_server.script = scripted.serve(reply)
    with client.stream("POST", URL, content=b"q") as response:
        parts = response.iter_raw()
        assert next(parts) == b"first"
        seen.set()
        assert list(parts) == [b"second"]


def test_closing_early_cancels_the_call_and_keeps_the_stream(
    client: httpx2.Client, scripted_server: Server
) -> None:
    """A response closed early sends Cancel; the stream serves the next request."""

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
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
    with client.stream("POST", URL, content=b"q") as response:
        assert next(response.iter_raw()) == b"endless"
    assert client.post(URL, content=b"q").content == b"next"
    assert len(scripted_server.streams) == 1


def test_a_server_that_ignores_a_cancel_loses_the_stream(
    client: httpx2.Client, scripted_server: Server, monkeypatch: pytest.MonkeyPatch
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


def test_after_go_away_the_next_request_opens_a_new_stream(
    client: httpx2.Client, scripted_server: Server
) -> None:
    """GoAway lets the call in flight finish; the stream is not used again."""

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        yield started()
        call = stream.call()
        if stream.number == 0:
            yield head(call.number)
            yield go_away()
        else:
            yield head(call.number)
        yield body(call.number, b"%d" % stream.number)
        yield end(call.number)
        stream.gone.wait(scripted.WAIT_S)

    scripted_server.script = script
    assert client.post(URL, content=b"q").content == b"0"
    assert scripted_server.streams[0].gone.wait(scripted.WAIT_S)
    assert client.post(URL, content=b"q").content == b"1"


def test_an_idle_stream_leaves_when_it_is_asked_to(
    client: httpx2.Client, scripted_server: Server
) -> None:
    """GoAway on an idle stream ends it at once, so that a draining server need not wait."""
    leave = threading.Event()

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        yield started()
        yield from answered(stream.call(), b"%d" % stream.number)
        if stream.number == 0:
            assert leave.wait(scripted.WAIT_S)
            yield go_away(keys_pb2.GoAway.REASON_STREAM_AGE)
        stream.gone.wait(scripted.WAIT_S)

    scripted_server.script = script
    assert client.post(URL, content=b"q").content == b"0"
    leave.set()
    assert scripted_server.streams[0].gone.wait(scripted.WAIT_S)
    assert client.post(URL, content=b"q").content == b"1"


def test_a_call_that_crossed_a_go_away_is_sent_again_once(
    client: httpx2.Client, scripted_server: Server
) -> None:
    """STREAM_CLOSING says that nothing went upstream: a body in memory goes to a new stream."""

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        yield started()
        call = stream.call()
        if stream.number == 0:
            refusal = status(Code.UNAVAILABLE, "STREAM_CLOSING")
            yield end(call.number, keys_pb2.OUTCOME_REFUSED, error=refusal, sent=False)
            stream.gone.wait(scripted.WAIT_S)
        yield from answered(call, call.body)

    scripted_server.script = script
    assert client.post(URL, content=b"again").content == b"again"
    assert len(scripted_server.streams) == 2


def test_a_stream_that_ends_well_after_go_away_has_taken_nothing(
    client: httpx2.Client, scripted_server: Server
) -> None:
    """A call that a server reads gets a ResponseEnd: without one, the request goes elsewhere."""

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        yield started()
        yield from answered(stream.call(), b"%d" % stream.number)
        if stream.number == 0:
            stream.call()
            yield go_away()
        else:
            stream.gone.wait(scripted.WAIT_S)

    scripted_server.script = script
    assert client.post(URL, content=b"q").content == b"0"
    assert client.post(URL, content=b"q").content == b"1"


def test_a_body_that_is_gone_is_not_sent_again(
    client: httpx2.Client, scripted_server: Server
) -> None:
    """After STREAM_CLOSING a one-shot body gives the refusal itself, marked as safe to repeat."""

    def reply(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
        refusal = status(Code.UNAVAILABLE, "STREAM_CLOSING")
        yield end(call.number, keys_pb2.OUTCOME_REFUSED, error=refusal, sent=False)

    scripted_server.script = scripted.serve(reply)
    response = client.post(URL, content=iter([b"once"]))
    assert response.status_code == 503
    assert response.headers["x-should-retry"] == "true"
    assert len(scripted_server.streams) == 1


def test_a_broken_idle_stream_is_replaced(
    client: httpx2.Client, transport: WithKeyTransport, scripted_server: Server
) -> None:
    """A server that was restarted between two requests is found again without an error."""
    scripted_server.script = scripted.serve(lambda call: answered(call, b"x"))
    assert client.post(URL, content=b"q").content == b"x"
    port = scripted_server.port
    scripted_server.stop()
    wait_until_noticed(transport)
    scripted_server.start(port)
    assert client.post(URL, content=b"q").content == b"x"
    assert len(scripted_server.streams) == 2


def test_a_server_that_is_away_is_a_connect_error_until_it_is_back(
    client: httpx2.Client, scripted_server: Server
) -> None:
    """A failed connection is tried anew by the next request, without a backoff to sit out."""
    scripted_server.script = scripted.serve(lambda call: answered(call, b"x"))
    port = scripted_server.port
    scripted_server.stop()
    with pytest.raises(httpx2.ConnectError, match="could not be reached"):
        client.post(URL, content=b"q")
    scripted_server.start(port)
    assert client.post(URL, content=b"q").content == b"x"


@pytest.mark.parametrize(
    "host", ["http://api.anthropic.com", "https://example.com", "https://api.anthropic.com:444"]
)
def test_no_other_host_is_served(client: httpx2.Client, host: str) -> None:
    """A request for anywhere else fails before anything is sent."""
    with pytest.raises(httpx2.UnsupportedProtocol):
        client.get(f"{host}/v1/models")


def test_a_redirect_leads_nowhere_else(profile: Profile, scripted_server: Server) -> None:
    """A client that follows redirects is stopped at the transport."""

    def reply(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
        yield head(call.number, 307, ("location", b"https://example.com/v1/messages"))
        yield end(call.number)

    scripted_server.script = scripted.serve(reply)
    transport = WithKeyTransport(profile)
    with (
        httpx2.Client(transport=transport, follow_redirects=True) as client,
        pytest.raises(httpx2.UnsupportedProtocol),
    ):
        client.post(URL, content=b"q")


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
    client: httpx2.Client,
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
    client: httpx2.Client, scripted_server: Server, before_started: bool
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
    client: httpx2.Client, scripted_server: Server, how: str
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
        with pytest.raises(httpx2.RemoteProtocolError, match="not whole"):
            got.extend(response.iter_raw())
        assert response.extensions["ironwork"].outcome in {"FAILED", ""}
    assert got == [b"half"]


@pytest.mark.parametrize(
    ("sent", "error"), [(False, httpx2.ConnectError), (True, httpx2.ReadError)]
)
def test_a_failure_before_the_answer_says_whether_anthropic_was_asked(
    client: httpx2.Client, scripted_server: Server, sent: bool, error: type[Exception]
) -> None:
    """FAILED without an answer is a ConnectError where nothing was sent upstream."""

    def reply(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
        cause = status(Code.UNAVAILABLE, "UPSTREAM")
        yield end(call.number, keys_pb2.OUTCOME_FAILED, error=cause, sent=sent)

    scripted_server.script = scripted.serve(reply)
    with pytest.raises(error):
        client.post(URL, content=b"q")


def test_a_stream_that_breaks_in_a_call_is_not_repeated(
    client: httpx2.Client, scripted_server: Server
) -> None:
    """What may have reached Anthropic is never sent twice."""

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        yield started()
        stream.call()
        stream.abort(status(Code.UNAVAILABLE, "CLIENT_STALLED"))

    scripted_server.script = script
    with pytest.raises(httpx2.ReadError):
        client.post(URL, content=b"q")
    assert len(scripted_server.streams) == 1


def test_a_message_out_of_turn_is_a_protocol_error(
    client: httpx2.Client, scripted_server: Server
) -> None:
    """A server that does not keep to the grammar is not believed."""

    def reply(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
        yield body(call.number, b"no head")

    scripted_server.script = scripted.serve(reply)
    with pytest.raises(httpx2.RemoteProtocolError, match="out of turn"):
        client.post(URL, content=b"q")


def test_silence_is_a_read_timeout_and_ends_the_call_upstream(
    client: httpx2.Client, scripted_server: Server
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
    with pytest.raises(httpx2.ReadTimeout):
        client.post(URL, content=b"q", timeout=httpx2.Timeout(10, read=0.1))
    assert scripted_server.streams[0].gone.wait(scripted.WAIT_S)


def test_a_server_that_does_not_start_is_a_connect_timeout(
    client: httpx2.Client, scripted_server: Server
) -> None:
    """On a new connection nothing of the request leaves before Started."""

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        with contextlib.suppress(scripted.ClientGone):
            pytest.fail(f"sent {stream.next()}")
        return
        yield

    scripted_server.script = script
    with pytest.raises(httpx2.ConnectTimeout):
        client.post(URL, content=b"q", timeout=httpx2.Timeout(10, connect=0.1))


def test_a_server_that_takes_nothing_is_a_write_timeout(
    client: httpx2.Client, scripted_server: Server
) -> None:
    """An upload that flow control holds fails past the write timeout."""

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        yield started()
        stream.gone.wait(scripted.WAIT_S)

    scripted_server.script = script
    with pytest.raises(httpx2.WriteTimeout):
        client.post(URL, content=b"x" * (16 << 20), timeout=httpx2.Timeout(10, write=0.2))


def test_requests_beyond_the_bound_wait_for_the_pool_timeout(
    profile: Profile, scripted_server: Server
) -> None:
    """With all streams in use, a further request is a PoolTimeout; a freed one serves it."""
    scripted_server.script = scripted.serve(lambda call: answered(call, b"x"))
    with httpx2.Client(
        transport=WithKeyTransport(profile, max_streams=1, max_idle_streams=1)
    ) as client:
        with (
            client.stream("POST", URL, content=b"q"),
            pytest.raises(httpx2.PoolTimeout, match="max_streams"),
        ):
            client.post(URL, content=b"q", timeout=httpx2.Timeout(10, pool=0.05))
        assert client.post(URL, content=b"q").content == b"x"


def test_idle_streams_are_bounded(profile: Profile, scripted_server: Server) -> None:
    """What does not fit among the idle streams is closed."""
    scripted_server.script = scripted.serve(lambda call: answered(call, b"x"))
    with httpx2.Client(transport=WithKeyTransport(profile, max_idle_streams=0)) as client:
        for _ in range(2):
            assert client.post(URL, content=b"q").content == b"x"
        for stream in scripted_server.wait_streams(2):
            assert stream.gone.wait(scripted.WAIT_S)


def test_a_large_upload_streams(client: httpx2.Client, scripted_server: Server) -> None:
    """Several megabytes from an iterator arrive whole, in messages of at most 16 KiB."""
    chunk = bytes(range(256)) * 300

    def reply(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
        assert not call.head.HasField("content_length")
        yield from answered(call, b"%d" % len(call.body))

    scripted_server.script = scripted.serve(reply)
    response = client.post(URL, content=(chunk for _ in range(60)))
    assert response.content == b"%d" % (60 * len(chunk))


def test_an_answer_ends_an_upload_early(client: httpx2.Client, scripted_server: Server) -> None:
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


def test_what_the_callers_body_raises_reaches_the_caller(
    client: httpx2.Client, scripted_server: Server
) -> None:
    """An upload that fails on this side is raised as it is and cancels the call."""

    def upload() -> Iterator[bytes]:
        yield b"half"
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        client.post(URL, content=upload())
    assert scripted_server.wait_streams(1)[0].gone.wait(scripted.WAIT_S)


def test_a_closed_transport_ends_what_is_open(profile: Profile, scripted_server: Server) -> None:
    """close() cancels streams in use; their bodies fail, and nothing can be sent afterwards."""

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        yield started()
        call = stream.call()
        yield head(call.number)
        stream.gone.wait(scripted.WAIT_S)

    scripted_server.script = script
    transport = WithKeyTransport(profile)
    request = httpx2.Request("POST", URL, content=b"q")
    response = transport.handle_request(request)
    transport.close()
    with pytest.raises(httpx2.RemoteProtocolError):
        response.read()
    with pytest.raises(httpx2.LocalProtocolError, match="closed"):
        transport.handle_request(request)


def test_a_renewed_certificate_is_taken_up(
    client: httpx2.Client,
    profile: Profile,
    scripted_server: Server,
    client_authority: scripted.Authority,
) -> None:
    """After the profile's files changed, a new stream presents the new certificate."""

    def script(stream: scripted.Stream) -> Iterator[keys_pb2.WithKeyResponse]:
        stream.start()
        yield started()
        pem = stream.context.auth_context()["x509_pem_cert"][0]
        yield from answered(stream.call(), pem)
        yield go_away(keys_pb2.GoAway.REASON_STREAM_AGE)

    scripted_server.script = script
    first = client.post(URL, content=b"q").content
    assert scripted_server.streams[0].gone.wait(scripted.WAIT_S)
    certificate, key = scripted.agent_identity(client_authority)
    profile.certificate.write_bytes(certificate)
    profile.private_key.write_bytes(key)
    second = client.post(URL, content=b"q").content
    assert first != second
    assert second.split() == certificate.split()


def test_an_async_body_is_refused(client: httpx2.Client, profile: Profile) -> None:
    """The sync transport cannot read an async body, and says which one can."""

    async def upload() -> object:
        yield b"x"

    transport = WithKeyTransport(profile)
    with pytest.raises(httpx2.LocalProtocolError, match="AsyncClient"):
        transport.handle_request(httpx2.Request("POST", URL, content=upload()))
    transport.close()


@pytest.mark.parametrize(
    "wrong", [{"task": "ü"}, {"agent": "a" * 129}, {"max_streams": 0}, {"max_idle_streams": 65}]
)
def test_a_transport_is_not_made_with_what_cannot_work(
    profile: Profile, wrong: dict[str, object]
) -> None:
    """Claims that the service would refuse and bounds that contradict are errors at once."""
    with pytest.raises(ValueError, match="must be"):
        WithKeyTransport(profile, **wrong)


def test_closing_during_an_upload_cancels_the_stream(
    client: httpx2.Client, scripted_server: Server
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


def test_a_profile_whose_files_are_gone_is_a_connect_error(
    client: httpx2.Client, profile: Profile
) -> None:
    """The error names the setting; once mended, the same transport works."""
    pem = profile.ca.read_bytes()
    profile.ca.unlink()
    with pytest.raises(httpx2.ConnectError, match=r"^ca: "):
        client.post(URL, content=b"q")
    profile.ca.write_bytes(pem)
    assert client.post(URL, content=b"q").status_code == 200


def test_a_slow_reader_holds_the_server_back(
    client: httpx2.Client, scripted_server: Server
) -> None:
    """What is not read is not buffered without bound: the server is held by flow control."""
    sent = 0

    def reply(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
        nonlocal sent
        yield head(call.number)
        for _ in range(4096):
            sent += 1
            yield body(call.number, b"x" * 16384)
        yield end(call.number)

    scripted_server.script = scripted.serve(reply)
    with client.stream("POST", URL, content=b"q") as response:
        parts = response.iter_raw()
        next(parts)
        assert sent < 4096
        assert sum(map(len, parts)) == 4095 * 16384
