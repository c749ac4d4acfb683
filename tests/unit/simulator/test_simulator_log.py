"""The log of what arrived, and waiting for it from any thread."""

import asyncio
import hashlib
import json
import threading
from pathlib import Path

import pytest

from fixtures.raw_http import RawConnection
from ironwork_simulator import Behaviour, Config, NotDisconnected, Simulator, in_thread
from ironwork_simulator.log import MAX_KEPT_BODY, MAX_RECORDS, RequestLog

VERSION = "anthropic-version: 2023-06-01"


def connect(simulator: Simulator) -> RawConnection:
    return RawConnection(simulator.host, simulator.port)


def test_a_request_is_recorded_exactly(plain_simulator: Simulator) -> None:
    """Method, raw target, headers in their case and order, body and its hash are kept as sent."""
    key = plain_simulator.make_key()
    body = b'{"a": "\xc3\xa9"}'
    with connect(plain_simulator) as connection:
        connection.request(
            "POST /v1/messages?b=%2F&a=1",
            f"X-Api-Key: {key}",
            VERSION,
            "X-Twice: 1",
            "x-twice: 2",
            "X-Bytes: \xe9",
            body=body,
        )
        response = connection.response()
    record = plain_simulator.wait_for_end_blocking(1)

    assert (record.number, record.connection, record.method) == (1, 1, "POST")
    assert (record.path, record.query) == ("/v1/messages", "b=%2F&a=1")
    assert record.headers == [
        ("Host", "api.anthropic.com"),
        ("X-Api-Key", key),
        ("anthropic-version", "2023-06-01"),
        ("X-Twice", "1"),
        ("x-twice", "2"),
        ("X-Bytes", "\xe9"),
        ("Content-Length", str(len(body))),
    ]
    assert record.values("x-TWICE") == ["1", "2"]
    assert (record.body, record.body_length) == (body, len(body))
    assert record.body_sha256 == hashlib.sha256(body).hexdigest()
    assert (record.key, record.key_index, record.credential_header) == (key, 0, "x-api-key")
    assert record.status == response.status == 400
    assert record.request_id == response.value("request-id")
    assert record.bytes_sent > len(response.body)
    assert record.head_at is not None
    assert record.body_at is not None
    assert record.finished_at is not None
    assert record.first_byte_at <= record.head_at <= record.body_at <= record.finished_at


def test_the_first_byte_is_timed_apart_from_the_head(plain_simulator: Simulator) -> None:
    """A head that comes in two pieces is timed at its first byte and at its end."""
    with connect(plain_simulator) as connection:
        connection.send(b"GET /v1/models HTTP/1.1\r\n")
        deadline = threading.Event()
        while not plain_simulator.requests and not deadline.wait(0.001):
            pass  # the first byte has no waiter of its own: a request is a head
        connection.send(b"Host: a\r\n\r\n")
        assert connection.response().status == 401
    record = plain_simulator.requests[0]
    assert record.head_at is not None
    assert record.first_byte_at < record.head_at


def test_a_large_body_is_hashed_and_not_kept(plain_simulator: Simulator) -> None:
    """Over 64 KiB only length and hash remain."""
    body = b"a" * (MAX_KEPT_BODY + 1)
    with connect(plain_simulator) as connection:
        connection.request("POST /v1/messages", body=body)
        connection.response()
    record = plain_simulator.wait_for_end_blocking(1)
    assert record.body is None
    assert record.body_length == len(body)
    assert record.body_sha256 == hashlib.sha256(body).hexdigest()


async def test_an_upload_can_be_watched(plain_simulator: Simulator) -> None:
    """wait_for_body returns when so much of a body has arrived, before all of it has."""
    with connect(plain_simulator) as connection:
        connection.send(b"POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
        record = await plain_simulator.wait_for_body(1, at_least=3)
        assert record.body_at is None
        connection.send(b"def")
        assert (await plain_simulator.wait_for_body(1)).body == b"abcdef"


async def test_waiting_works_before_and_after(plain_simulator: Simulator) -> None:
    """Who waits before a request comes, and who asks after it is over, get the same record."""
    waiting = asyncio.create_task(plain_simulator.wait_for_request(2))
    with connect(plain_simulator) as connection:
        for _ in range(2):
            connection.request("GET /v1/models")
            await asyncio.to_thread(connection.response)
    assert (await waiting).number == 2
    assert await plain_simulator.wait_for_end(2) is await waiting


async def test_waiting_in_vain_says_what_came(plain_simulator: Simulator) -> None:
    """A TimeoutError names what was missing and what was seen."""
    with connect(plain_simulator) as connection:
        connection.request("GET /v1/models")
        connection.response()
    with pytest.raises(TimeoutError, match=r"request 2 was not received .*1: GET models 401"):
        await plain_simulator.wait_for_request(2, timeout_s=0.01)
    with pytest.raises(TimeoutError, match=r"request 2 was not finished"):
        plain_simulator.wait_for_end_blocking(2, timeout_s=0.01)


async def test_a_whole_answer_is_no_disconnect(plain_simulator: Simulator) -> None:
    """Waiting for a client to leave fails at once when its answer was delivered whole."""
    with connect(plain_simulator) as connection:
        connection.request("GET /v1/models")
        await asyncio.to_thread(connection.response)
        with pytest.raises(NotDisconnected):
            await plain_simulator.disconnected(1)


async def test_leaving_during_the_upload_is_a_disconnect(plain_simulator: Simulator) -> None:
    """A client that leaves before its body is complete has left its request."""
    with connect(plain_simulator) as connection:
        connection.send(b"POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
        await plain_simulator.wait_for_request(1)
    record = await plain_simulator.disconnected(1)
    assert record.status is None
    assert record.body_at is None


async def test_clear_starts_anew(plain_simulator: Simulator) -> None:
    """After clear() the next request is number 1, and who waited is told."""
    waiting = asyncio.create_task(plain_simulator.wait_for_request(1))
    await asyncio.sleep(0)
    plain_simulator.clear()
    with pytest.raises(LookupError):
        await waiting
    with connect(plain_simulator) as connection:
        connection.request("GET /v1/models")
        connection.response()
    assert [record.number for record in plain_simulator.requests] == [1]


def test_the_log_is_bounded() -> None:
    """Only the last 10,000 requests are kept; an older one is named as gone."""
    log = RequestLog()
    for _ in range(MAX_RECORDS + 5):
        log.open(1)
    assert len(log.records()) == MAX_RECORDS
    assert log.records()[0].number == 6
    with pytest.raises(LookupError, match="no longer kept"):
        log.when(5, lambda _: True)
    assert log.when(6, lambda _: True).result(0).number == 6


def test_kept_bodies_are_bounded() -> None:
    """Past 64 MiB of bodies the oldest are dropped, their hashes stay."""
    log = RequestLog()
    for _ in range(1025):
        record = log.open(1)
        record.body = b"a" * MAX_KEPT_BODY
        record.body_sha256 = "hash"
        log.body_complete(record)
    bodies = [record.body for record in log.records()]
    assert bodies[0] is None
    assert all(body is not None for body in bodies[1:])
    assert log.records()[0].body_sha256 == "hash"


def test_the_file_log_holds_no_secret(tmp_path: Path) -> None:
    """A line of the file log names headers, shows harmless values, and of the key the last four."""
    path = tmp_path / "requests.jsonl"
    with in_thread(Simulator(Config(log_file=path))) as simulator:
        key = simulator.make_key()
        with connect(simulator) as connection:
            connection.request(
                f"POST /v1/messages?q={key}",
                f"x-api-key: {key}",
                f"Cookie: {key}",
                f"X-{key}: 1",
                VERSION,
                body=b'"a prompt"',
            )
            connection.response()
    text = path.read_text()
    assert key not in text
    assert "prompt" not in text
    line = json.loads(text)
    assert (line["key_last4"], line["key_index"]) == (key[-4:], 0)
    assert line["route"] == "messages"
    assert line["header_names"][2:4] == ["Cookie", "(long)"]
    assert ["anthropic-version", "2023-06-01"] in line["headers"]


def test_a_record_does_not_show_its_secrets(plain_simulator: Simulator) -> None:
    """The repr of a record, which a failing test prints, has no key in it."""
    key = plain_simulator.make_key()
    with connect(plain_simulator) as connection:
        connection.request(f"GET /v1/models?q={key}", f"x-api-key: {key}", VERSION)
        connection.response()
    assert key not in repr(plain_simulator.requests)


async def test_in_a_loop_of_ones_own() -> None:
    """`async with Simulator()` serves on the test's own loop, and frees its port at the end."""
    async with Simulator(Config(host="::1")) as simulator:
        assert simulator.url == f"http://[::1]:{simulator.port}"
        reader, writer = await asyncio.open_connection(simulator.host, simulator.port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 401")
        assert simulator.open_connections == 1
    await reader.read()
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(simulator.host, simulator.port)


async def test_stopping_ends_what_is_held() -> None:
    """A stop ends held and hanging answers at once, and calls none of them a disconnect."""
    async with Simulator() as simulator:
        writers = []
        for behaviour in (Behaviour(hang=True), Behaviour(hold="never")):
            simulator.script(None, behaviour)
            _, writer = await asyncio.open_connection(simulator.host, simulator.port)
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
            writers.append(writer)
        await simulator.wait_for_request(2)
    assert all(record.disconnected_at is None for record in simulator.requests)
    for writer in writers:
        writer.close()


async def test_a_fault_of_the_simulator_is_kept_for_the_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An exception in the simulator itself resets the connection and stands in `faults`."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("ironwork_simulator.engine.admit", broken)
    async with Simulator() as simulator:
        reader, writer = await asyncio.open_connection(simulator.host, simulator.port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert [type(fault) for fault in simulator.faults] == [ZeroDivisionError]
        writer.close()
