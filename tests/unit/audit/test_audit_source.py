"""Reading a log's files: from a folder, and from a web server that is not trusted."""

import contextlib
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fixtures.tlog_made import KEY, made_entries, write_log
from ironwork_audit.cli.main import main
from ironwork_audit.source import (
    FolderSource,
    HttpSource,
    NotThere,
    Unreadable,
    open_source,
    read_tile,
)
from ironwork_audit.tlog import TilePath
from ironwork_audit.verify import verify

ENTRIES = made_entries(300)


class Files(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(handler: object) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answering(answer: bytes, then_close: bool = True) -> type[BaseHTTPRequestHandler]:
    """A server that answers everything with these bytes."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            while self.rfile.readline() not in {b"\r\n", b""}:
                pass
            self.wfile.write(answer)
            self.close_connection = then_close

    return Handler


def test_a_log_over_http(tmp_path: Path) -> None:
    """Any web server that serves the folder publishes the log."""
    write_log(tmp_path / "a/log", ENTRIES)
    with serving(partial(Files, directory=str(tmp_path))) as url:
        source = open_source(f"{url}/a/log/")
        assert verify(source, KEY).finding is None
        source.close()
        copy = pickle.loads(pickle.dumps(source))
        assert verify(copy, KEY).finding is None
        with pytest.raises(NotThere):
            copy.read("tile/7/000", 100)
        assert main(["verify", f"{url}/a/log", "--key", str(KEY)]) == 0
        assert main(["verify", f"{url}/a", "--key", str(KEY)]) == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", "answered 302"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "answered 500"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n", "too long"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 101, "longer than 100"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", "the connection failed"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nx", "encoding"),
        (b"nothing of HTTP\r\n", "the connection failed"),
        (b"", "the connection failed"),
    ],
)
def test_a_server_that_misbehaves(answer: bytes, said: str) -> None:
    """Redirects, errors, too much, too little and no HTTP at all are told apart, within bounds."""
    with serving(answering(answer)) as url, pytest.raises(Unreadable, match=said):
        HttpSource(url).read("checkpoint", 100)


def test_a_server_that_is_gone_or_says_nothing() -> None:
    """No connection, and no answer within the deadline, are said so."""
    with serving(answering(b"")) as url:
        pass
    with pytest.raises(Unreadable, match="refused"):
        HttpSource(url).read("checkpoint", 100)
    silent = answering(b"", then_close=False)
    with serving(silent) as url:
        source = HttpSource(url, deadline_s=0.2)
        with pytest.raises(Unreadable, match=r"no answer within 0\.2 s"):
            source.read("checkpoint", 100)


@pytest.mark.parametrize("first", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_server_that_sends_a_byte_at_a_time(first: bytes) -> None:
    """The deadline is of the whole answer, its head too, not of each byte."""
    ended = threading.Event()

    class Dribbling(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.close_connection = True
            self.wfile.write(first)
            with contextlib.suppress(OSError):
                while not ended.wait(0.01):
                    self.wfile.write(b"x")

    with serving(Dribbling) as url:
        source = HttpSource(url, deadline_s=0.2)
        try:
            with pytest.raises(Unreadable, match=r"no answer within 0\.2 s"):
                source.read("checkpoint", 1 << 20)
        finally:
            ended.set()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://log.test:99999/", "not an http"),
        ("http://[::1", "not an http"),
        (f"http://{'a' * 70}.test/", "not an http"),
        ("http://log.test/\u00fc", "percent-encoded"),
        ("http://user@log.test/", "no user"),
    ],
)
def test_what_is_no_url_of_a_log(url: str, said: str) -> None:
    """It is refused as it is given, and names what is wrong."""
    with pytest.raises(Unreadable, match=said):
        open_source(url)


def test_a_kept_connection_that_the_server_closed() -> None:
    """A connection that the server closed between two reads is made anew."""
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
    with serving(answering(good)) as url:
        source = HttpSource(url)
        assert [source.read("checkpoint", 100) for _ in range(3)] == [b"x"] * 3
        source.close()


def test_a_folder(tmp_path: Path) -> None:
    """Missing files, files that are too long and what is no file are told apart."""
    source = FolderSource(tmp_path)
    (tmp_path / "long").write_bytes(b"x" * 101)
    (tmp_path / "folder").mkdir()
    with pytest.raises(NotThere):
        source.read("missing", 100)
    with pytest.raises(Unreadable, match="longer"):
        source.read("long", 100)
    with pytest.raises(Unreadable, match="directory"):
        source.read("folder", 100)
    with pytest.raises(NotThere):
        read_tile(source, TilePath(0, 0, 3))
    with pytest.raises(NotThere):
        read_tile(source, TilePath(0, 0))
