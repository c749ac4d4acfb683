"""The sync transport over a real gRPC stream."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from fixtures.libraries import Client, Library, Transport
from ironwork.keys.v1 import keys_pb2
from ironwork_client import Profile
from unit.client import scripted_server as scripted
from unit.client.scripted_server import body, end, go_away, head, started, status

pytestmark = pytest.mark.usefixtures("no_thread_left")
URL = "https://api.anthropic.com/v1/messages"
Server = scripted.ScriptedServer
Code = grpc.StatusCode


def wait_until_noticed(transport: Transport) -> None:
    """Until the transport has dropped the streams of a server that went away."""
    pool = transport._core._pool
    with pool._changed:
        assert pool._changed.wait_for(lambda: not pool._open, scripted.WAIT_S)


def answered(call: scripted.Call, *parts: bytes) -> Iterator[keys_pb2.WithKeyResponse]:
    yield head(call.number, 200, ("content-type", b"text/plain"))
    for part in parts:
        yield body(call.number, part)
    yield end(call.number)


def test_a_request_and_its_answer_pass_unchanged(client: Client, scripted_server: Server) -> None:
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


def test_a_report_says_which_key_served(client: Client, scripted_server: Server) -> None:
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


def test_requests_in_turn_share_a_stream(client: Client, scripted_server: Server) -> None:
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


def test_two_at_once_use_two_streams(client: Client, scripted_server: Server) -> None:
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


def test_an_answer_is_delivered_as_it_comes(client: Client, scripted_server: Server) -> None:
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
    client: Client, scripted_server: Server
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


def test_after_go_away_the_next_request_opens_a_new_stream(
    client: Client, scripted_server: Server
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


def test_an_idle_stream_leaves_when_it_is_asked_to(client: Client, scripted_server: Server) -> None:
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
    client: Client, scripted_server: Server
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
    client: Client, scripted_server: Server
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


def test_a_broken_idle_stream_is_replaced(
    client: Client, transport: Transport, scripted_server: Server
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
    library: Library, client: Client, scripted_server: Server
) -> None:
    """A failed connection is tried anew by the next request, without a backoff to sit out."""
    scripted_server.script = scripted.serve(lambda call: answered(call, b"x"))
    port = scripted_server.port
    scripted_server.stop()
    with pytest.raises(library.http.ConnectError, match="could not be reached"):
        client.post(URL, content=b"q")
    scripted_server.start(port)
    assert client.post(URL, content=b"q").content == b"x"


@pytest.mark.parametrize(
    "host", ["http://api.anthropic.com", "https://example.com", "https://api.anthropic.com:444"]
)
def test_no_other_host_is_served(library: Library, client: Client, host: str) -> None:
    """A request for anywhere else fails before anything is sent."""
    with pytest.raises(library.http.UnsupportedProtocol):
        client.get(f"{host}/v1/models")


def test_a_redirect_leads_nowhere_else(
    library: Library, profile: Profile, scripted_server: Server
) -> None:
    """A client that follows redirects is stopped at the transport."""

    def reply(call: scripted.Call) -> Iterator[keys_pb2.WithKeyResponse]:
        yield head(call.number, 307, ("location", b"https://example.com/v1/messages"))
        yield end(call.number)

    scripted_server.script = scripted.serve(reply)
    transport = library.transport(profile)
    with (
        library.http.Client(transport=transport, follow_redirects=True) as client,
        pytest.raises(library.http.UnsupportedProtocol),
    ):
        client.post(URL, content=b"q")


def test_requests_beyond_the_bound_wait_for_the_pool_timeout(
    library: Library, profile: Profile, scripted_server: Server
) -> None:
    """With all streams in use, a further request is a PoolTimeout; a freed one serves it."""
    scripted_server.script = scripted.serve(lambda call: answered(call, b"x"))
    with library.http.Client(
        transport=library.transport(profile, max_streams=1, max_idle_streams=1)
    ) as client:
        with (
            client.stream("POST", URL, content=b"q"),
            pytest.raises(library.http.PoolTimeout, match="max_streams"),
        ):
            client.post(URL, content=b"q", timeout=library.http.Timeout(10, pool=0.05))
        assert client.post(URL, content=b"q").content == b"x"


def test_idle_streams_are_bounded(
    library: Library, profile: Profile, scripted_server: Server
) -> None:
    """What does not fit among the idle streams is closed."""
    scripted_server.script = scripted.serve(lambda call: answered(call, b"x"))
    with library.http.Client(transport=library.transport(profile, max_idle_streams=0)) as client:
        for _ in range(2):
            assert client.post(URL, content=b"q").content == b"x"
        for stream in scripted_server.wait_streams(2):
            assert stream.gone.wait(scripted.WAIT_S)


def test_a_renewed_certificate_is_taken_up(
    client: Client,
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


@pytest.mark.parametrize(
    "wrong", [{"task": "ü"}, {"agent": "a" * 129}, {"max_streams": 0}, {"max_idle_streams": 65}]
)
def test_a_transport_is_not_made_with_what_cannot_work(
    library: Library, profile: Profile, wrong: dict[str, object]
) -> None:
    """Claims that the service would refuse and bounds that contradict are errors at once."""
    with pytest.raises(ValueError, match="must be"):
        library.transport(profile, **wrong)


def test_a_profile_whose_files_are_gone_is_a_connect_error(
    library: Library, client: Client, profile: Profile
) -> None:
    """The error names the setting; once mended, the same transport works."""
    pem = profile.ca.read_bytes()
    profile.ca.unlink()
    with pytest.raises(library.http.ConnectError, match=r"^ca: "):
        client.post(URL, content=b"q")
    profile.ca.write_bytes(pem)
    assert client.post(URL, content=b"q").status_code == 200


def test_a_slow_reader_holds_the_server_back(client: Client, scripted_server: Server) -> None:
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
