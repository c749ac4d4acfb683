"""What the simulator says on the wire: credentials, headers, routes, framing, limits."""

import json
import re
import ssl
import threading
import uuid

import pytest

from fixtures.raw_http import RawConnection, RawResponse
from fixtures.simulator import TestSimulator
from ironwork_simulator import Behaviour, Config, KeyState, Simulator, in_thread, make_key

VERSION = "anthropic-version: 2023-06-01"
MESSAGE = {
    "model": "claude-haiku-5-5",
    "max_tokens": 50,
    "messages": [{"role": "user", "content": "Hi"}],
}
BODY = json.dumps(MESSAGE).encode()


def connect(simulator: Simulator) -> RawConnection:
    return RawConnection(simulator.host, simulator.port)


def ask(simulator: Simulator, head: str, *headers: str, body: bytes | None = None) -> RawResponse:
    with connect(simulator) as connection:
        connection.request(head, *headers, body=body)
        return connection.response(head_only=head.startswith("HEAD"))


def error_of(response: RawResponse) -> tuple[int, str]:
    document = json.loads(response.body)
    assert document["type"] == "error"
    assert document["request_id"] == response.value("request-id")
    return response.status, document["error"]["type"]


def post(simulator: Simulator, document: object, path: str = "/v1/messages") -> RawResponse:
    key = simulator.make_key()
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return ask(simulator, f"POST {path}", f"x-api-key: {key}", VERSION, body=body)


# --- credentials ---


@pytest.mark.parametrize("header", ["x-api-key: {}", "Authorization: Bearer {}"])
def test_a_key_counts_in_either_header(plain_simulator: Simulator, header: str) -> None:
    """A key is accepted as x-api-key and as a Bearer token, and the log says which it was."""
    key = plain_simulator.make_key()
    response = ask(plain_simulator, "GET /v1/models", header.format(key), VERSION)
    assert response.status == 200
    record = plain_simulator.requests[0]
    assert record.key == key
    assert record.credential_header == header.partition(":")[0].lower()


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ("x-api-key: ",),
        ("x-api-key: nobody",),
        ("Authorization: Basic abc",),
        ("Authorization: Bearer",),
    ],
)
def test_no_key_or_a_strangers_is_an_authentication_error(
    plain_simulator: Simulator, headers: tuple[str, ...]
) -> None:
    """Without a key that is known there is a 401, and no organisation is named."""
    response = ask(plain_simulator, "GET /v1/models", *headers, VERSION)
    assert error_of(response) == (401, "authentication_error")
    assert not response.values("anthropic-organization-id")


def test_a_key_sent_twice_is_no_key(plain_simulator: Simulator) -> None:
    """Two x-api-key headers are one value joined, which nobody's key is."""
    header = f"x-api-key: {plain_simulator.make_key()}"
    response = ask(plain_simulator, "GET /v1/models", header, header, VERSION)
    assert error_of(response) == (401, "authentication_error")


@pytest.mark.parametrize(
    ("state", "models", "messages"),
    [
        (KeyState.VALID, 200, 200),
        (KeyState.REVOKED, 401, 401),
        (KeyState.WITHOUT_INFERENCE, 200, 403),
        (KeyState.ORGANIZATION_DISABLED, 400, 400),
        (KeyState.ORGANIZATION_ON_HOLD, 400, 400),
        (KeyState.WITHOUT_CREDIT, 200, 402),
    ],
)
def test_a_keys_state_decides(
    plain_simulator: Simulator, state: KeyState, models: int, messages: int
) -> None:
    """Each state of a key has its answers; count_tokens is refused as messages is."""
    headers = (f"x-api-key: {plain_simulator.make_key(state)}", VERSION)
    assert ask(plain_simulator, "GET /v1/models", *headers).status == models
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        assert ask(plain_simulator, f"POST {path}", *headers, body=BODY).status == messages


def test_a_key_can_be_revoked_while_serving(plain_simulator: Simulator) -> None:
    """A change of a key's state counts from the next request."""
    key = plain_simulator.make_key()
    with connect(plain_simulator) as connection:
        connection.request("GET /v1/models", f"x-api-key: {key}", VERSION)
        assert connection.response().status == 200
        plain_simulator.set_key_state(key, "revoked")
        connection.request("GET /v1/models", f"x-api-key: {key}", VERSION)
        assert connection.response().status == 401
    with pytest.raises(LookupError):
        plain_simulator.set_key_state(make_key(), "revoked")


def test_keys_are_well_formed_and_new() -> None:
    """A throw-away key has the form of Anthropic's and is never made twice."""
    keys = {make_key() for _ in range(50)}
    assert len(keys) == 50
    assert all(re.fullmatch(r"sk-ant-api03-[A-Za-z0-9_-]{93}AA", key) for key in keys)


# --- headers ---


def test_an_answer_carries_anthropics_headers(plain_simulator: Simulator) -> None:
    """Ids, organisation, rate limits and the network's own headers are on every answer."""
    organization = str(uuid.uuid4())
    key = plain_simulator.make_key(organization_id=organization)
    response = ask(plain_simulator, "GET /v1/models", f"x-api-key: {key}", VERSION)

    assert re.fullmatch(r"req_[0-9A-Za-z]{24}", response.value("request-id"))
    assert response.value("anthropic-organization-id") == organization
    assert response.value("content-type") == "application/json"
    for limit in ("requests", "tokens", "input-tokens", "output-tokens"):
        prefix = f"anthropic-ratelimit-{limit}"
        assert int(response.value(f"{prefix}-remaining")) > 0
        assert int(response.value(f"{prefix}-remaining")) < int(response.value(f"{prefix}-limit"))
        assert response.value(f"{prefix}-reset").endswith("Z")
    for name in ("date", "server", "via", "cf-ray", "set-cookie", "strict-transport-security"):
        assert response.values(name), name
    assert response.value("x-robots-tag") == "none"


@pytest.mark.parametrize(
    "headers", [(), ("anthropic-version: ",), ("anthropic-version: new",), (VERSION, VERSION)]
)
def test_the_version_header_is_required(
    plain_simulator: Simulator, headers: tuple[str, ...]
) -> None:
    """No version, one that is no date, or two of them: an invalid_request_error."""
    key = plain_simulator.make_key()
    response = ask(plain_simulator, "GET /v1/models", f"x-api-key: {key}", *headers)
    assert error_of(response) == (400, "invalid_request_error")


def test_a_stream_is_chunked_events(plain_simulator: Simulator) -> None:
    """A stream is text/event-stream in chunks; each event is named as its JSON says."""
    response = post(plain_simulator, {**MESSAGE, "stream": True})
    assert response.value("content-type").startswith("text/event-stream")
    assert response.value("transfer-encoding") == "chunked"
    assert response.complete
    events = response.body.decode().split("\n\n")[:-1]
    for event in events:
        name, data = event.split("\n")
        assert name.removeprefix("event: ") == json.loads(data.removeprefix("data: "))["type"]
    names = [event.split("\n")[0].removeprefix("event: ") for event in events]
    assert names[:3] == ["message_start", "content_block_start", "ping"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]


# --- routes ---


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /", 404),
        ("GET /v1/organizations", 404),
        ("GET /v1/models/", 404),
        ("GET /v1/models/a/b", 404),
        ("GET //v1/models", 404),
        ("GET /v1/messages", 405),
        ("DELETE /v1/models", 405),
        ("PUT /v1/messages/count_tokens", 405),
    ],
)
def test_unknown_paths_and_wrong_methods_are_refused(
    plain_simulator: Simulator, head: str, status: int
) -> None:
    """An unknown path is a 404, a wrong method a 405 that names the right one."""
    response = ask(plain_simulator, head, f"x-api-key: {plain_simulator.make_key()}", VERSION)
    assert error_of(response)[0] == status
    assert bool(response.values("allow")) == (status == 405)


@pytest.mark.parametrize("path", ["/v1/models?beta=true", "/v1/models/claude%2Dopus-5"])
def test_head_is_get_without_its_body(plain_simulator: Simulator, path: str) -> None:
    """HEAD has the status and length of GET, no body, and leaves the connection usable."""
    headers = (f"x-api-key: {plain_simulator.make_key()}", VERSION)
    with connect(plain_simulator) as connection:
        connection.request(f"HEAD {path}", *headers)
        head = connection.response(head_only=True)
        connection.request(f"GET {path}", *headers)
        full = connection.response()
    assert head.status == full.status == 200
    assert int(head.value("content-length")) == len(full.body)


def test_head_of_a_post_path_is_not_allowed(plain_simulator: Simulator) -> None:
    """HEAD of /v1/messages is a 405 without a body."""
    with connect(plain_simulator) as connection:
        connection.request("HEAD /v1/messages", "connection: close")
        assert connection.response(head_only=True).status == 405
        assert connection.rest() == b""


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "after_id=x", "after_id=a&before_id=b"]
)
def test_a_bad_page_is_refused(plain_simulator: Simulator, query: str) -> None:
    """A limit out of bounds or a cursor that is none is an invalid_request_error."""
    headers = (f"x-api-key: {plain_simulator.make_key()}", VERSION)
    response = ask(plain_simulator, f"GET /v1/models?{query}", *headers)
    assert error_of(response) == (400, "invalid_request_error")


# --- bodies ---

_NO_MODEL = {key: value for key, value in MESSAGE.items() if key != "model"}
_NO_MAX = {key: value for key, value in MESSAGE.items() if key != "max_tokens"}


@pytest.mark.parametrize(
    "document",
    [
        b"{",
        b"\xff",
        b"[" * 5000,
        [],
        _NO_MODEL,
        _NO_MAX,
        {**MESSAGE, "model": 3},
        {**MESSAGE, "max_tokens": "many"},
        {**MESSAGE, "max_tokens": -1},
        {**MESSAGE, "max_tokens": True},
        {**MESSAGE, "stream": "yes"},
        {**MESSAGE, "messages": []},
        {**MESSAGE, "messages": "Hi"},
        {**MESSAGE, "messages": [{"role": "king", "content": "Hi"}]},
        {**MESSAGE, "messages": [{"role": "user"}]},
        {**MESSAGE, "messages": [{"role": "user", "content": [{"text": "no type"}]}]},
        {"model": "claude-haiku-5-5", "max_tokens": 1},
        {**MESSAGE, "tools": [1]},
        {**MESSAGE, "stop_sequences": [1]},
        {**MESSAGE, "tool_choice": {"type": "any"}},
        {**MESSAGE, "tool_choice": {"type": "perhaps"}},
        {**MESSAGE, "tool_choice": {"type": "tool", "name": "x"}, "tools": [{"name": "y"}]},
        {**MESSAGE, "thinking": {"type": "hard"}},
        {**MESSAGE, "thinking": {"type": "enabled", "budget_tokens": 10}},
        {**MESSAGE, "thinking": {"type": "enabled", "budget_tokens": 1024}},
    ],
)
def test_a_bad_request_is_an_invalid_request_error(
    plain_simulator: Simulator, document: object
) -> None:
    """What Anthropic would not accept, the simulator does not either."""
    assert error_of(post(plain_simulator, document)) == (400, "invalid_request_error")


def test_unknown_fields_are_let_through(plain_simulator: Simulator) -> None:
    """A field that the simulator does not know is no error, and is in the log as it came."""
    assert post(plain_simulator, {**MESSAGE, "from_the_future": 1}).status == 200
    assert b"from_the_future" in (plain_simulator.requests[0].body or b"")


def test_unpaired_surrogates_do_no_harm(plain_simulator: Simulator) -> None:
    """Text that is no UTF-8 once it is decoded is answered all the same."""
    body = b'{"model": "claude-haiku-5-5", "max_tokens": 9, "tools": [{"name": "\\ud800"}], '
    body += b'"messages": [{"role": "user", "content": "tool \\ud800"}]}'
    assert post(plain_simulator, body).status == 200


def test_counting_needs_no_max_tokens(plain_simulator: Simulator) -> None:
    """count_tokens takes a body without max_tokens."""
    response = post(plain_simulator, _NO_MAX, "/v1/messages/count_tokens")
    assert json.loads(response.body) == {"input_tokens": 5}


def test_a_body_announced_too_large_is_refused_before_it_comes() -> None:
    """A Content-Length over the bound is answered 413 while nothing of the body was sent."""
    with in_thread(Simulator()) as simulator, connect(simulator) as connection:
        key = simulator.make_key()
        length = f"content-length: {32 * 1024 * 1024 + 1}"
        connection.request("POST /v1/messages", f"x-api-key: {key}", VERSION, length)
        response = connection.response()
        assert error_of(response) == (413, "request_too_large")
        assert response.value("connection") == "close"


def test_a_chunked_body_is_refused_when_it_has_grown_too_large() -> None:
    """A body without a length is answered 413 once it is over the bound, and not kept."""
    with in_thread(Simulator(Config(max_body=1000))) as simulator:
        with connect(simulator) as connection:
            key = simulator.make_key()
            chunked = "transfer-encoding: chunked"
            connection.request("POST /v1/messages", f"x-api-key: {key}", VERSION, chunked)
            connection.send(b"800\r\n" + b"a" * 0x800 + b"\r\n")
            assert error_of(connection.response()) == (413, "request_too_large")
            connection.send(b"800\r\n" + b"a" * 0x800 + b"\r\n0\r\n\r\n")
        assert simulator.faults == ()


# --- connections ---


def test_a_connection_carries_many_requests(plain_simulator: Simulator) -> None:
    """Requests in turn, and requests sent ahead, are answered in order on one connection."""
    key = plain_simulator.make_key()
    with connect(plain_simulator) as connection:
        for _ in range(3):
            connection.request("POST /v1/messages", f"x-api-key: {key}", VERSION, body=BODY)
        assert [connection.response().status for _ in range(3)] == [200] * 3
        connection.request("GET /v1/models", f"x-api-key: {key}", VERSION)
        assert connection.response().status == 200
    assert {record.connection for record in plain_simulator.requests} == {1}
    assert [record.number for record in plain_simulator.requests] == [1, 2, 3, 4]


def test_connection_close_is_honoured(plain_simulator: Simulator) -> None:
    """A client that asks for the end of the connection gets it after the answer."""
    with connect(plain_simulator) as connection:
        connection.request("GET /v1/models", "Connection: close")
        assert connection.response().value("connection") == "close"
        assert connection.rest() == b""
        assert not connection.reset


def test_what_is_sent_far_ahead_waits_its_turn(plain_simulator: Simulator) -> None:
    """A client that sends many requests before it reads gets all answers, in order."""
    hold = plain_simulator.hold()
    plain_simulator.script(None, Behaviour(hold=hold.name))
    key = plain_simulator.make_key()
    body = json.dumps({**MESSAGE, "padding": "x" * 100_000}).encode()

    def send() -> None:
        for _ in range(6):
            connection.request("POST /v1/messages", f"x-api-key: {key}", VERSION, body=body)

    with connect(plain_simulator) as connection:
        sender = threading.Thread(target=send)
        sender.start()
        plain_simulator.wait_for_request_blocking(1)
        hold.release()
        statuses = [connection.response().status for _ in range(6)]
        sender.join()
    assert statuses == [200] * 6
    assert [record.body_length for record in plain_simulator.requests] == [len(body)] * 6


def test_a_reader_that_stops_is_waited_for(plain_simulator: Simulator) -> None:
    """A long answer is written no faster than it is read, while others are served."""
    plain_simulator.script(None, Behaviour(body="x" * 30_000_000, drip=1_000_000))
    with connect(plain_simulator) as slow, connect(plain_simulator) as other:
        slow.request("GET /v1/models")
        assert slow.exactly(10) == b"HTTP/1.1 2"
        # More turns of the loop than the answer has pieces.
        for _ in range(100):
            other.request("GET /v1/models")
            assert other.response().status == 401
        record = plain_simulator.requests[0]
        assert record.finished_at is None
        assert record.bytes_sent < 25_000_000
    plain_simulator.disconnected_blocking(1)


def test_a_broken_upload_ends_an_early_answer(plain_simulator: Simulator) -> None:
    """Nonsense in a body that is being answered already ends the connection."""
    hold = plain_simulator.hold()
    plain_simulator.script(None, Behaviour(early=True, hold=hold.name))
    with connect(plain_simulator) as connection:
        connection.request("POST /v1/messages", "transfer-encoding: chunked")
        plain_simulator.wait_for_request_blocking(1)
        connection.send(b"zz\r\n")
        assert connection.rest() == b""


def test_http_1_0_streams_until_the_end(plain_simulator: Simulator) -> None:
    """An HTTP/1.0 client gets a stream without chunks, ended by the connection's end."""
    body = json.dumps({**MESSAGE, "stream": True}).encode()
    key = plain_simulator.make_key()
    with connect(plain_simulator) as connection:
        connection.send(
            f"POST /v1/messages HTTP/1.0\r\nx-api-key: {key}\r\n{VERSION}\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        response = connection.response()
    assert not response.values("transfer-encoding")
    assert response.body.endswith(b'{"type":"message_stop"}\n\n')


def test_expect_100_continue_is_answered(plain_simulator: Simulator) -> None:
    """A client that waits for leave to send its body gets it."""
    key = plain_simulator.make_key()
    with connect(plain_simulator) as connection:
        connection.request(
            "POST /v1/messages",
            f"x-api-key: {key}",
            VERSION,
            "Expect: 100-continue",
            f"Content-Length: {len(BODY)}",
        )
        assert connection.response(head_only=True).status == 100
        connection.send(BODY)
        assert connection.response().status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 300_000,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_logged(plain_simulator: Simulator, data: bytes) -> None:
    """Malformed requests get a 400 and the end of the connection, and are marked in the log."""
    with connect(plain_simulator) as connection:
        connection.send(data)
        assert connection.response().status == 400
    assert plain_simulator.wait_for_end_blocking(1).malformed


def test_tls_is_for_anthropics_name(simulator: TestSimulator) -> None:
    """Over TLS the certificate is for api.anthropic.com, and HTTP/1.1 is what ALPN agrees on."""
    trust = ssl.create_default_context(cafile=str(simulator.ca_file))
    trust.set_alpn_protocols(["h2", "http/1.1"])
    with RawConnection(simulator.host, simulator.port, tls=trust) as connection:
        assert isinstance(connection._socket, ssl.SSLSocket)
        assert connection._socket.selected_alpn_protocol() == "http/1.1"
        connection.request("GET /v1/models", f"x-api-key: {simulator.make_key()}", VERSION)
        assert connection.response().status == 200


def test_more_connections_than_allowed_are_dropped() -> None:
    """Connections past the bound are ended without a word."""
    with in_thread(Simulator(Config(max_connections=1))) as simulator, connect(simulator) as first:
        first.request("GET /v1/models")
        assert first.response().status == 401
        with connect(simulator) as second:
            assert second.rest() == b""


def test_an_idle_connection_is_closed() -> None:
    """A connection that carries nothing for the idle time is closed cleanly."""
    simulator = Simulator(Config(idle_timeout_s=0.05))
    with in_thread(simulator), connect(simulator) as connection:
        assert connection.rest() == b""
        assert not connection.reset


def test_the_simulators_own_header_asks_for_a_behaviour(plain_simulator: Simulator) -> None:
    """`anthropic-simulator` names a behaviour, as JSON or by name; nonsense is a 400."""
    for value, status in (
        ("overloaded", 529),
        ('{"status": 402}', 402),
        ("no-such", 400),
        ("{", 400),
        ('{"status": "x"}', 400),
    ):
        response = ask(plain_simulator, "GET /v1/models", f"anthropic-simulator: {value}")
        assert response.status == status


def test_a_key_may_have_a_behaviour_of_its_own(plain_simulator: Simulator) -> None:
    """A key registered with a behaviour always gets it; a scripted one goes before."""
    key = plain_simulator.make_key(behaviour=Behaviour(status=529))
    plain_simulator.script(None, Behaviour(status=500))
    statuses = [
        ask(plain_simulator, "GET /v1/models", f"x-api-key: {key}", VERSION).status
        for _ in range(3)
    ]
    assert statuses == [500, 529, 529]
