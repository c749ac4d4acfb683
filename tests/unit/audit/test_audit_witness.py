"""`ironwork-audit witness`: what it makes of each answer, and what it keeps."""

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fixtures.tlog_made import KEY, ORIGIN, WITNESS_KEY, made_entry, signed_checkpoint
from fixtures.witness import RunningWitness, StartWitness
from ironwork_audit.cli import witness as command
from ironwork_audit.cli.main import main
from ironwork_audit.log import AppendLog
from ironwork_audit.tlog import Checkpoint, VerifierKey, parse_note
from ironwork_audit.witness import MAX_ANSWER_BYTES
from ironwork_audit.witness_post import WitnessPost
from ironwork_audit.witness_submission import WitnessFailed


class Says:
    """An HTTP server on loopback that gives one answer to everything. hold: before it ends."""

    def __init__(self, status: int, body: bytes = b"", *, announced: int | None = None) -> None:
        says, self.hold = self, threading.Event()
        self.requests = 0

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                says.requests += 1
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Location", "http://127.0.0.1:1/")
                self.send_header("Content-Length", str(announced or len(body)))
                self.end_headers()
                self.wfile.write(body)
                if announced is not None:
                    says.hold.wait(60)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


StartSays = Callable[..., Says]


@pytest.fixture
def says() -> Iterator[StartSays]:
    """says(status, body) starts one."""
    started: list[Says] = []

    def start(status: int, body: bytes = b"", *, announced: int | None = None) -> Says:
        started.append(Says(status, body, announced=announced))
        return started[-1]

    yield start
    for each in started:
        each.close()


def grow(folder: Path, count: int) -> None:
    """So many entries more, and a checkpoint."""
    log = AppendLog.open(folder, ORIGIN)
    log.append([made_entry] * count)
    tree = log.integrate()
    log.publish(signed_checkpoint(tree.size, tree.root))
    log.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    grow(tmp_path / "log", 300)
    return tmp_path / "log"


@pytest.fixture
def real(start_witness: StartWitness, tmp_path: Path) -> RunningWitness:
    """aics-witness."""
    return start_witness(tmp_path / "witness", str(KEY))


def witness(log: object, url: str, key: object = WITNESS_KEY, *more: str) -> int:
    arguments = ["--key", str(KEY), "--url", url, "--witness-key", str(key), *more]
    return main(["witness", str(log), *arguments])


def kept_size(path: Path) -> int:
    return Checkpoint.parse(parse_note(path.read_bytes()).text).size


def test_a_growing_log_is_witnessed_and_a_rewritten_one_is_not(
    log: Path, real: RunningWitness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real witness signs the log, and what it grows by; the verifier finds its signature. One
    that does not go on from what was signed is refused, also where what was kept is lost.
    """
    assert witness(log, real.url, real.key) == 0
    grow(log, 500)
    assert witness(log, real.url, real.key) == 0
    assert kept_size(log / "checkpoint.witnessed") == 800
    assert main(["verify", str(log), "--key", str(KEY), "--witness-key", real.key]) == 0
    (log / "checkpoint.witnessed").unlink()
    grow(log, 10)
    assert witness(log, real.url, real.key) == 0
    assert "810 entries witnessed by witness.test/one" in capsys.readouterr().out

    grow(tmp_path / "short", 20)
    assert witness(tmp_path / "short", real.url, real.key) == 1
    assert "WITNESS_AHEAD" in capsys.readouterr().out
    other = AppendLog.open(tmp_path / "other", ORIGIN)
    other.append([lambda index: b"another %d" % index] * 900)
    tree = other.integrate()
    other.publish(signed_checkpoint(tree.size, tree.root))
    other.close()
    assert witness(tmp_path / "other", real.url, real.key) == 1
    assert "WITNESS_CONFLICT" in capsys.readouterr().out
    assert not (tmp_path / "other" / "checkpoint.witnessed").exists()


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (403, b"", "WITNESS_KEY_UNKNOWN"),
        (404, b"", "WITNESS_LOG_UNKNOWN"),
        (302, b"", "WITNESS_REDIRECTED"),
        (500, b"", "WITNESS_BUSY"),
        (409, b"no size", "WITNESS_ANSWER_WRONG"),
        (200, b"no signature\n", "WITNESS_COSIGNATURE_WRONG"),
        (200, b"x" * (MAX_ANSWER_BYTES + 1), "WITNESS_ANSWER_WRONG"),
    ],
)
def test_an_answer_that_is_none_is_told_and_nothing_is_kept(
    log: Path,
    says: StartSays,
    capsys: pytest.CaptureFixture[str],
    status: int,
    body: bytes,
    reason: str,
) -> None:
    """What a witness refuses, or cannot be, ends with 2 and the reason."""
    assert witness(log, says(status, body).url) == 2
    assert reason in capsys.readouterr().err
    assert not (log / "checkpoint.witnessed").exists()


def test_a_witness_that_hangs_or_trickles_has_a_deadline(says: StartSays) -> None:
    """Half an answer is waited for no longer than that; nobody there is told at once."""
    slow = says(200, b"half", announced=100)
    with pytest.raises(WitnessFailed) as hung:
        WitnessPost(slow.url, deadline_s=0.3).add_checkpoint(b"")
    assert hung.value.reason == "WITNESS_TIMEOUT"
    gone = says(200)
    gone.close()
    with pytest.raises(WitnessFailed) as absent:
        WitnessPost(gone.url).add_checkpoint(b"")
    assert absent.value.reason == "WITNESS_UNREACHABLE"


def test_what_is_not_to_be_used_is_refused(
    log: Path, says: StartSays, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A witness elsewhere is asked by https; what was kept must be this witness's; a log that its
    key did not sign is shown to nobody; a URL's log needs a place to keep the answer.
    """
    assert witness(log, "http://witness.example") == 2
    assert witness("http://127.0.0.1:1/log", "https://witness.example") == 2
    assert "--out" in capsys.readouterr().err
    (tmp_path / "kept").write_bytes((log / "checkpoint").read_bytes())
    assert (
        witness(log, "https://witness.example", WITNESS_KEY, "--out", str(tmp_path / "kept")) == 2
    )
    assert "not a checkpoint of this log" in capsys.readouterr().err
    asked = says(404)
    foreign = VerifierKey(ORIGIN, KEY.type, bytes(32))
    arguments = ["--key", str(foreign), "--url", asked.url, "--witness-key", str(WITNESS_KEY)]
    assert main(["witness", str(log), *arguments]) == 1
    assert asked.requests == 0


def test_following_goes_on_through_failures_and_ends_with_an_alarm(
    log: Path,
    real: RunningWitness,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each new checkpoint is shown; a log that cannot be read for a moment is waited for; one that
    is not what it was ends it with 1.
    """
    paused: list[float] = []
    checkpoint = log / "checkpoint"
    note = checkpoint.read_bytes()

    def pause(seconds: float) -> None:
        paused.append(seconds)
        match len(paused):
            case 1:
                checkpoint.unlink()
            case 2:
                checkpoint.write_bytes(note)
                grow(log, 7)
            case 3:
                checkpoint.write_bytes(note)

    monkeypatch.setattr(command.time, "sleep", pause)
    assert witness(log, real.url, real.key, "--follow") == 1
    said = capsys.readouterr().out
    assert "300 entries witnessed" in said
    assert "307 entries witnessed" in said
    assert "asked again in 1 s" in said
    assert "WITNESS_AHEAD" in said
    assert paused == [1.0, 1.0, 1.0]
    assert time.sleep is pause
