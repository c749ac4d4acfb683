"""The misbehaviours, each seen from a raw socket as a relay would meet it."""

import json
import ssl
import time
from collections.abc import Iterator

import pytest

from fixtures.raw_http import RawConnection
from fixtures.simulator import TestSimulator
from ironwork_simulator import NAMED_BEHAVIOURS, Behaviour, Match, NotDisconnected, Simulator

VERSION = "anthropic-version: 2023-06-01"


def message(*, stream: bool = False) -> bytes:
    return json.dumps(
        {
            "model": "claude-haiku-5-5",
            "max_tokens": 200,
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": stream,
        }
    ).encode()


@pytest.fixture(params=["plain", "tls"])
def any_simulator(
    request: pytest.FixtureRequest,
) -> tuple[Simulator, ssl.SSLContext | None]:
    """The simulator without TLS, and with."""
    if request.param == "plain":
        return request.getfixturevalue("plain_simulator"), None
    simulator: TestSimulator = request.getfixturevalue("simulator")
    return simulator, ssl.create_default_context(cafile=str(simulator.ca_file))


@pytest.fixture
def key(any_simulator: tuple[Simulator, ssl.SSLContext | None]) -> str:
    return any_simulator[0].make_key()


@pytest.fixture
def connection(
    any_simulator: tuple[Simulator, ssl.SSLContext | None],
) -> Iterator[RawConnection]:
    simulator, tls = any_simulator
    with RawConnection(simulator.host, simulator.port, tls=tls) as opened:
        yield opened


@pytest.fixture
def sim(any_simulator: tuple[Simulator, ssl.SSLContext | None]) -> Simulator:
    return any_simulator[0]


def post(connection: RawConnection, key: str, *, stream: bool = False) -> None:
    connection.request(
        "POST /v1/messages", f"x-api-key: {key}", VERSION, body=message(stream=stream)
    )


# --- cuts ---


@pytest.mark.parametrize("after", [1, 1000])
@pytest.mark.parametrize("stream", [False, True])
def test_a_short_body_promises_more_than_it_sends(
    sim: Simulator, connection: RawConnection, key: str, *, stream: bool, after: int
) -> None:
    """cut=content_length: the head names a length, fewer bytes come, then a clean FIN."""
    sim.script(None, Behaviour(cut="content_length", cut_after=after))
    post(connection, key, stream=stream)
    response = connection.response()
    assert response.status == 200
    assert response.body
    assert not response.complete
    assert not connection.reset


@pytest.mark.parametrize("stream", [False, True])
def test_a_chunked_body_may_lack_its_end(
    sim: Simulator, connection: RawConnection, key: str, *, stream: bool
) -> None:
    """cut=chunked: whole chunks come, the terminating one never; a clean FIN."""
    sim.script(None, Behaviour(cut="chunked"))
    post(connection, key, stream=stream)
    response = connection.response()
    assert response.body
    assert not response.complete
    assert not connection.reset


def test_a_chunk_may_end_in_the_middle(sim: Simulator, connection: RawConnection, key: str) -> None:
    """cut=mid_chunk: a chunk is shorter than its size line says."""
    sim.script(None, Behaviour(cut="mid_chunk", cut_after=2))
    post(connection, key, stream=True)
    response = connection.response()
    assert response.body.endswith(b"event: content_block_del")
    assert not response.complete


@pytest.mark.parametrize("stream", [False, True])
def test_a_reset_ends_the_body(
    sim: Simulator, connection: RawConnection, key: str, *, stream: bool
) -> None:
    """cut=reset: some of the body, then a TCP RST; cut_after says after how much."""
    sim.script(None, Behaviour(cut="reset", cut_after=1))
    post(connection, key, stream=stream)
    response = connection.response()
    assert response.body
    assert not response.complete
    assert connection.reset


@pytest.mark.parametrize(("cut", "reset"), [("close_before_head", 0), ("reset_before_head", 1)])
def test_an_answer_may_never_begin(
    sim: Simulator, connection: RawConnection, key: str, cut: str, *, reset: int
) -> None:
    """Cuts before the head leave no byte, ended by FIN or by RST."""
    sim.script(None, Behaviour.from_json({"cut": cut}))
    post(connection, key)
    assert connection.rest() == b""
    assert connection.reset == bool(reset)


def test_cuts_are_no_disconnects(sim: Simulator, connection: RawConnection, key: str) -> None:
    """What the simulator broke off itself does not count as the client's leaving."""
    sim.script(None, Behaviour(cut="reset"))
    post(connection, key)
    connection.rest()
    assert sim.wait_for_end_blocking(1).disconnected_at is None
    with pytest.raises(NotDisconnected):
        sim.disconnected_blocking(1)


# --- time ---


def test_a_held_head_waits_for_its_release(
    sim: Simulator, connection: RawConnection, key: str
) -> None:
    """hold_at=head: nothing is answered until the hold is released; then all is well."""
    hold = sim.hold()
    sim.script(None, Behaviour(hold=hold.name))
    post(connection, key)
    record = sim.wait_for_request_blocking(1)
    assert record.bytes_sent == 0
    hold.release()
    assert connection.response().complete
    assert hold.released


@pytest.mark.parametrize("after", [0, 4, 1000])
def test_a_held_body_waits_after_some_parts(
    sim: Simulator, connection: RawConnection, key: str, after: int
) -> None:
    """hold_at=body: so many events come, the rest (at least the end) when the hold is released."""
    hold = sim.hold("named")
    sim.script(None, Behaviour(hold="named", hold_at="body", hold_after=after))
    post(connection, key, stream=True)
    connection.until(b"\r\n\r\n")
    seen = b"".join(connection.until(b"\n\n\r\n") for _ in range(min(after, 4)))
    assert seen.count(b"event: ") == min(after, 4)
    assert sim.requests[0].finished_at is None
    hold.release()
    assert connection.until(b"\r\n0\r\n\r\n").endswith(b"\r\n0\r\n\r\n")


def test_a_held_unary_body_stops_in_its_middle(
    sim: Simulator, connection: RawConnection, key: str
) -> None:
    """A unary body has two halves to be held between."""
    hold = sim.hold()
    sim.script(None, Behaviour(hold=hold.name, hold_at="body"))
    post(connection, key)
    head = connection.until(b"\r\n\r\n").decode()
    length = int(head.split("content-length: ")[1].split("\r")[0])
    first = connection.exactly(length // 2)
    hold.release()
    json.loads(first + connection.exactly(length - length // 2))


def test_a_held_upload_is_not_read(sim: Simulator, connection: RawConnection, key: str) -> None:
    """hold_at=upload: after the head nothing of the body is taken until the release."""
    hold = sim.hold()
    sim.script(None, Behaviour(hold=hold.name, hold_at="upload"))
    body = message()
    post_head = f"POST /v1/messages HTTP/1.1\r\nHost: a\r\nx-api-key: {key}\r\n{VERSION}\r\n"
    connection.send(f"{post_head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:10])
    record = sim.wait_for_request_blocking(1)
    assert record.body_length == 0
    hold.release()
    connection.send(body[10:])
    assert connection.response().status == 200
    assert record.body == body


def test_an_early_answer_does_not_wait_for_the_upload(
    sim: Simulator, connection: RawConnection, key: str
) -> None:
    """early: the answer comes while the body is still being sent, and the connection lives on."""
    sim.script(None, Behaviour(status=429, early=True))
    head = f"POST /v1/messages HTTP/1.1\r\nHost: a\r\nx-api-key: {key}\r\n{VERSION}\r\n"
    connection.send(f"{head}Content-Length: 6\r\n\r\nabc".encode())
    assert connection.response().status == 429
    connection.send(b"def")
    post(connection, key)
    assert connection.response().status == 200
    assert sim.requests[0].body == b"abcdef"


def test_a_hanging_answer_never_comes(sim: Simulator, connection: RawConnection, key: str) -> None:
    """hang: the request is taken, nothing is answered, and the client's leaving is noticed."""
    sim.script(None, Behaviour(hang=True))
    post(connection, key)
    sim.wait_for_request_blocking(1)
    connection.close()
    record = sim.disconnected_blocking(1)
    assert record.status is None
    assert record.bytes_sent == 0


def test_a_slow_first_byte_takes_its_time(
    sim: Simulator, connection: RawConnection, key: str
) -> None:
    """first_byte_delay_s: so long, at least, until the head."""
    sim.script(None, Behaviour(first_byte_delay_s=0.2))
    post(connection, key)
    assert connection.response().status == 200
    record = sim.wait_for_end_blocking(1)
    assert record.finished_at is not None
    assert record.body_at is not None
    assert record.finished_at - record.body_at >= 0.19


def test_a_pace_spreads_a_stream(sim: Simulator, connection: RawConnection, key: str) -> None:
    """pace_s: so long between two events."""
    sim.script(None, Behaviour(pace_s=0.01, answer="hello"))
    begun = time.monotonic()
    post(connection, key, stream=True)
    events = connection.response().body.count(b"event: ")
    assert time.monotonic() - begun >= 0.01 * (events - 1)


def test_a_drip_cuts_the_body_small(sim: Simulator, connection: RawConnection, key: str) -> None:
    """drip: chunks of so many bytes, whatever they carry."""
    sim.script(None, Behaviour(drip=7))
    post(connection, key, stream=True)
    connection.until(b"\r\n\r\n")
    sizes = []
    while size := int(connection.until(b"\r\n"), 16):
        connection.exactly(size + 2)
        sizes.append(size)
    assert max(sizes) == 7
    assert len(sizes) > 100


# --- content ---


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_go_where_they_are_told(
    sim: Simulator, connection: RawConnection, key: str, status: int
) -> None:
    """A redirect has its status and location."""
    sim.script(None, Behaviour(status=status, location="https://elsewhere.example/v1/messages"))
    post(connection, key)
    response = connection.response()
    assert response.status == status
    assert response.value("location") == "https://elsewhere.example/v1/messages"


@pytest.mark.parametrize("stream", [False, True])
def test_the_key_is_echoed_in_a_body(
    sim: Simulator, connection: RawConnection, key: str, *, stream: bool
) -> None:
    """echo_key=body: the answer holds the key literally, in one piece."""
    sim.script(None, Behaviour(echo_key="body"))
    post(connection, key, stream=stream)
    assert key.encode() in connection.response().body


def test_the_key_is_echoed_in_a_header_or_an_error(
    sim: Simulator, connection: RawConnection, key: str
) -> None:
    """echo_key=header and =error put it there."""
    sim.script(None, Behaviour(echo_key="header"))
    sim.script(None, Behaviour(echo_key="error", status=401))
    post(connection, key)
    assert connection.response().value("x-echo") == key
    post(connection, key)
    assert key in json.loads(connection.response().body)["error"]["message"]


def test_an_echo_can_be_spread_over_chunks(
    sim: Simulator, connection: RawConnection, key: str
) -> None:
    """echo_key with drip: no chunk holds the key, all together do."""
    sim.script(None, Behaviour(echo_key="body", drip=5))
    post(connection, key, stream=True)
    assert key.encode() in connection.response().body


def test_headers_can_be_huge_added_and_left_out(
    sim: Simulator, connection: RawConnection, key: str
) -> None:
    """huge_header, headers (which replace) and without_headers change the head."""
    sim.script(
        None,
        Behaviour(
            huge_header=100_000,
            headers=(("Request-Id", "mine"), ("x-new", "1"), ("x-new", "2")),
            without_headers=("Date",),
        ),
    )
    post(connection, key)
    response = connection.response()
    assert len(response.value("x-huge")) == 100_000
    assert response.value("request-id") == "mine"
    assert response.values("x-new") == ["1", "2"]
    assert not response.values("date")


def test_a_body_can_be_anything(sim: Simulator, connection: RawConnection, key: str) -> None:
    """body, content_type and status together make any answer; framing=chunked frames it so."""
    sim.script(
        None, Behaviour(status=502, body="<html>", content_type="text/html", framing="chunked")
    )
    post(connection, key)
    response = connection.response()
    assert (response.status, response.body) == (502, b"<html>")
    assert response.value("content-type") == "text/html"
    assert response.value("transfer-encoding") == "chunked"


def test_raw_bytes_replace_http(sim: Simulator, connection: RawConnection, key: str) -> None:
    """raw: exactly these bytes, then the end."""
    sim.script(None, Behaviour(raw="HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n\xff"))
    post(connection, key)
    assert connection.rest() == b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n\xff"


def test_an_answers_length_can_be_chosen(
    sim: Simulator, connection: RawConnection, key: str
) -> None:
    """answer_tokens: text of exactly that many tokens, within max_tokens."""
    sim.script(None, Behaviour(answer_tokens=150))
    post(connection, key)
    document = json.loads(connection.response().body)
    assert document["usage"]["output_tokens"] == 150
    assert len(document["content"][0]["text"]) == 600


def test_a_mid_stream_error_keeps_the_framing_whole(
    sim: Simulator, connection: RawConnection, key: str
) -> None:
    """error_after: the events before it, `event: error`, and a properly ended stream."""
    sim.script(None, Behaviour(error_after=2, error_type="api_error", message="x"))
    post(connection, key, stream=True)
    response = connection.response()
    assert response.complete
    *before, error = response.body.decode().strip().split("\n\n")
    assert len(before) == 2
    assert error.startswith("event: error\n")
    assert '"error":{"type":"api_error","message":"x"}' in error


# --- connections ---


@pytest.mark.parametrize("close", ["announced", "after_response"])
def test_a_connection_can_be_closed_after_an_answer(
    sim: Simulator, connection: RawConnection, key: str, close: str
) -> None:
    """close: with and without having said so, the connection ends after a whole answer."""
    sim.script(None, Behaviour.from_json({"close": close}))
    post(connection, key)
    response = connection.response()
    assert response.complete
    assert (response.value("connection") == "close") == (close == "announced")
    assert connection.rest() == b""
    assert not connection.reset


def test_an_idle_connection_can_die_under_the_next_request(
    sim: Simulator, connection: RawConnection, key: str
) -> None:
    """close=before_next_request: the next request meets a reset and is not in the log."""
    sim.script(None, Behaviour(close="before_next_request"))
    post(connection, key)
    assert connection.response().complete
    post(connection, key)
    assert connection.rest() == b""
    assert connection.reset
    assert len(sim.requests) == 1


# --- the script ---


def test_a_behaviour_is_for_those_that_match(plain_simulator: Simulator) -> None:
    """Key, method, path and header choose the request; others pass it by."""
    mine, other = plain_simulator.make_key(), plain_simulator.make_key()
    match = Match(key=mine, method="GET", path="/v1/models*", header=("X-Test", "1"))
    plain_simulator.script(match, Behaviour(status=529))
    requests = [
        ("GET /v1/models", other, "x-test: 1"),
        ("GET /v1/models", mine, "x-test: 2"),
        ("HEAD /v1/models", mine, "x-test: 1"),
        ("GET /v1/nothing", mine, "x-test: 1"),
        ("GET /v1/models/claude-opus-5", mine, "x-test: 1"),
        ("GET /v1/models/claude-opus-5", mine, "x-test: 1"),
    ]
    with RawConnection(plain_simulator.host, plain_simulator.port) as connection:
        for head, key, header in requests:
            connection.request(head, f"x-api-key: {key}", VERSION, header)
            connection.response(head_only=head.startswith("HEAD"))
    assert [r.status for r in plain_simulator.requests] == [200, 200, 200, 404, 529, 200]


def test_behaviours_are_used_in_their_order(plain_simulator: Simulator) -> None:
    """Each is used for its number of requests, None for all that come; clear() ends it."""
    plain_simulator.script(None, Behaviour(status=500), times=2)
    plain_simulator.script(None, Behaviour(status=529), times=None)
    with RawConnection(plain_simulator.host, plain_simulator.port) as connection:
        statuses = []
        for number in range(5):
            if number == 4:
                plain_simulator.clear()
            connection.request("GET /v1/models")
            statuses.append(connection.response().status)
    assert statuses == [500, 500, 529, 529, 401]


def test_every_named_behaviour_can_be_read() -> None:
    """The names of the table stand for behaviours that are valid."""
    for name in NAMED_BEHAVIOURS:
        assert Behaviour.from_json(name) != Behaviour()


@pytest.mark.parametrize(
    "value",
    [
        "unknown",
        3,
        {"no_such_field": 1},
        {"status": "529"},
        {"status": True},
        {"status": -1},
        {"first_byte_delay_s": -0.1},
        {"cut": "sideways"},
        {"headers": [["a"]]},
        {"headers": "a: b"},
        {"early": 1},
        {"early": None},
        {"details": []},
    ],
)
def test_a_wrong_behaviour_is_refused(value: object) -> None:
    """Unknown names, fields and types are errors when they are scripted, not when they are met."""
    with pytest.raises(ValueError, match=r"expected|unknown"):
        Behaviour.from_json(value)


def test_the_queues_are_bounded(plain_simulator: Simulator) -> None:
    """Neither scripts nor holds can be added without end, and times has to be a number of times."""
    with pytest.raises(ValueError, match="times"):
        plain_simulator.script(None, Behaviour(), times=0)
    for _ in range(1000):
        plain_simulator.script(None, Behaviour())
        plain_simulator.hold()
    with pytest.raises(ValueError, match="at most"):
        plain_simulator.script(None, Behaviour())
    with pytest.raises(ValueError, match="at most"):
        plain_simulator.hold()
