"""The simulator as a process: its options, its line of readiness, its control endpoint, its end."""

import json
import os
import select
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fixtures.raw_http import RawConnection, RawResponse
from fixtures.simulator import SimulatorTls
from ironwork_simulator import Config, NotLoopback, make_key

VERSION = "anthropic-version: 2023-06-01"
COMMAND = [sys.executable, "-m", "ironwork_simulator"]
DEADLINE_S = 20


class Process:
    """A running simulator process."""

    def __init__(self, *options: str) -> None:
        self.popen = subprocess.Popen(
            [*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.popen.stdout is not None
        self.ready: dict[str, Any] = json.loads(self.popen.stdout.readline())

    def stop(self) -> tuple[int, str]:
        """SIGTERM; returns the exit code and what was said besides the line of readiness."""
        self.popen.send_signal(signal.SIGTERM)
        out, error = self.popen.communicate(timeout=DEADLINE_S)
        return self.popen.returncode, out + error

    def control(self, head: str, document: object = None, *headers: str) -> RawResponse:
        port = int(self.ready["control_url"].rpartition(":")[2])
        body = None if document is None else json.dumps(document).encode()
        with RawConnection("127.0.0.1", port) as connection:
            connection.request(head, *headers, body=body)
            return connection.response()

    def ask(self, head: str, *headers: str) -> RawResponse:
        with RawConnection("127.0.0.1", self.ready["port"]) as connection:
            connection.request(head, *headers)
            return connection.response()


@pytest.fixture
def process() -> Iterator[Process]:
    started = Process("--port", "0", "--control-port", "0", "--pace", "0")
    yield started
    code, said = started.stop()
    assert (code, said) == (0, "")


def test_it_serves_tls_keys_and_a_log(tmp_path: Path, simulator_tls: SimulatorTls) -> None:
    """With all its options it says where it is, in a line and a file, and logs without secrets."""
    valid, revoked = make_key(), make_key()
    keys = {"keys": [{"key": valid}, {"key": revoked, "state": "revoked"}]}
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    process = Process(
        "--tls-cert",
        str(simulator_tls.cert_file),
        "--tls-key",
        str(simulator_tls.key_file),
        "--keys",
        str(tmp_path / "keys.json"),
        "--log",
        str(tmp_path / "log"),
        "--ready-file",
        str(tmp_path / "ready"),
        "--pace",
        "0.001",
    )
    assert json.loads((tmp_path / "ready").read_text()) == process.ready
    assert process.ready["url"] == f"https://127.0.0.1:{process.ready['port']}"
    assert process.ready["pid"] == process.popen.pid
    trust = ssl.create_default_context(cafile=str(simulator_tls.ca_file))
    for key, status in ((valid, 200), (revoked, 401)):
        with RawConnection("127.0.0.1", process.ready["port"], tls=trust) as connection:
            connection.request("GET /v1/models", f"x-api-key: {key}", VERSION)
            assert connection.response().status == status
    assert process.stop() == (0, "")
    log = (tmp_path / "log").read_text()
    assert [json.loads(line)["key_index"] for line in log.splitlines()] == [0, 1]
    assert valid not in log


def test_the_control_endpoint_has_the_switches(process: Process) -> None:
    """Keys, scripts, holds, the log and its clearing work over HTTP as they do in a process."""
    key = make_key()
    assert process.control("POST /keys", {"key": key, "organization_id": "org"}).status == 200
    script = {"match": {"key": key}, "behaviour": {"status": 529, "hold": "h"}, "times": 1}
    assert process.control("POST /script", script).status == 200
    assert process.control("POST /release", {"hold": "h"}).status == 200
    headers = (f"x-api-key: {key}", VERSION)
    assert process.ask("GET /v1/models", *headers).status == 529
    response = process.ask("GET /v1/models", *headers)
    assert response.value("anthropic-organization-id") == "org"

    log = process.control("GET /log")
    assert [r["status"] for r in json.loads(log.body)["requests"]] == [529, 200]
    assert key.encode() not in log.body
    assert process.control("POST /clear", {}).status == 200
    assert json.loads(process.control("GET /log").body) == {"requests": []}
    assert "overloaded" in json.loads(process.control("GET /behaviours").body)["behaviours"]


@pytest.mark.parametrize(
    ("head", "document", "status"),
    [
        ("POST /script", {"behaviour": "no-such"}, 400),
        ("POST /script", {"match": {"no_such": 1}}, 400),
        ("POST /script", {"times": "x"}, 400),
        ("POST /script", {"times": 0}, 400),
        ("POST /script", [], 400),
        ("POST /release", {}, 400),
        ("POST /keys", {"key": "SECRET\n"}, 400),
        ("POST /keys", {"key": "SECRET", "state": "SECRET"}, 400),
        ("POST /keys", {"key": "SECRET", "organization_id": 3}, 400),
        ("POST /keys", {"key": "SECRET", "behaviour": {"status": "SECRET"}}, 400),
        ("POST /keys", {"kye": "SECRET"}, 400),
        ("GET /script", None, 404),
    ],
)
def test_a_wrong_control_request_names_the_field(
    process: Process, head: str, document: object, status: int
) -> None:
    """Errors say which field is wrong, never what it held."""
    response = process.control(head, document)
    assert response.status == status
    assert json.loads(response.body)["error"]
    assert b"SECRET" not in response.body


def test_the_control_endpoint_is_not_for_browsers(process: Process) -> None:
    """A request with an Origin, which a web page's always has, is refused."""
    assert process.control("POST /clear", {}, "Origin: http://127.0.0.1").status == 403


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "loopback"),
        (["--host", "example.com"], "loopback"),
        (["--tls-cert", "x"], "both or neither"),
        (["--tls-cert", "missing", "--tls-key", "missing"], "cannot start"),
        (["--pace", "-1"], "pace_s"),
        (["--keys", "missing"], "cannot be read"),
        (["--ready-file", "/nowhere/ready"], "cannot start"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(options: list[str], message: str) -> None:
    """Wrong options end with exit code 2 and one line, without a traceback."""
    done = subprocess.run(
        [*COMMAND, *options], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_in_use_is_said_so(process: Process) -> None:
    """A second simulator on the same port says that it is taken."""
    done = subprocess.run(
        [*COMMAND, "--port", str(process.ready["port"])],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 2
    assert "cannot start" in done.stderr


@pytest.mark.parametrize(
    "content",
    [
        "SECRET",
        '["SECRET"]',
        '{"keys": {"SECRET": 1}}',
        '{"keys": ["SECRET"]}',
        '{"keys": [{"key": "SECRET", "state": "SECRET"}]}',
        '{"keys": [{"key": "S\u00c9CRET"}]}',
    ],
)
def test_a_bad_keys_file_is_not_quoted(tmp_path: Path, content: str) -> None:
    """A keys file that cannot be read is named, and its content is not shown."""
    path = tmp_path / "keys.json"
    path.write_text(content, encoding="utf-8")
    done = subprocess.run(
        [*COMMAND, "--keys", str(path)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 2
    assert str(path) in done.stderr
    assert "CRET" not in done.stderr.replace(str(path), "")


def test_it_ends_with_its_parent() -> None:
    """--exit-with-parent: when the process that started it is gone, it ends too."""
    starter = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-m', "
        "'ironwork_simulator', '--exit-with-parent'], stdout=subprocess.PIPE); "
        "sys.stdout.write(p.stdout.readline().decode()); sys.stdout.flush(); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", starter], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    ready: Mapping[str, int] = json.loads(parent.stdout.readline())
    descriptor = os.pidfd_open(ready["pid"])
    try:
        assert not _ended(descriptor, 0)
        parent.kill()
        parent.communicate()
        assert _ended(descriptor, DEADLINE_S)
    finally:
        os.close(descriptor)


def _ended(descriptor: int, timeout_s: float) -> bool:
    return bool(select.select([descriptor], [], [], timeout_s)[0])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "localhost", ""])
def test_it_listens_on_loopback_only(host: str) -> None:
    """Any address that others could reach, and any name, is refused."""
    with pytest.raises(NotLoopback):
        Config(host=host)
