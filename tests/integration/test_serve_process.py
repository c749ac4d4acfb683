"""`serve` as a process: it starts, drains, and nobody reads its memory."""

from __future__ import annotations

import ctypes
import re
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fixtures.journal_events import entries
from fixtures.log_check import check_checkpoint
from fixtures.processes import server
from fixtures.production import Production
from fixtures.softhsm import MakeToken
from ironwork_server.cli.main import main

DEADLINE_S = 30.0


def test_serve_runs_on_what_is_not_dev(production: Production, make_token: MakeToken) -> None:
    """With a CA, a token and a database of its own the service starts, answers health over mutual
    TLS, denies reads of its memory, and drains and exits with 0 on SIGTERM.
    """
    production.token = make_token(with_key=True)
    production.settings["master_key"] = {"uris": [production.token.uri]}
    config = str(production.write())
    assert main(["db", "upgrade", "--config", config]) == 0
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = {**production.token.env, "IRONWORK_LISTEN": address}
    with server(
        "serve", "--config", config, log=production.folder / "serve.log", env=env
    ) as running:
        credentials = grpc.ssl_channel_credentials(
            production.ca.certificate_pem,
            production.client.private_key_pem,
            production.client.certificate_pem,
        )
        with grpc.secure_channel(address, credentials) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(
                health_pb2.HealthCheckRequest(), timeout=DEADLINE_S, wait_for_ready=True
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        limits = Path(f"/proc/{running.process.pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0 ", limits)
        running.signal()
        assert running.wait() == 0
        names = [event["event"] for event in running.events()]
        assert names[0] == "memory.overwrites_freed"
        assert set(names[1:3]) == {"hsm.pin_in_server", "audit.unwitnessed"}
        assert names[3] == "service.serving"
        assert names[-2:] == ["signal.received", "service.draining"]
    operations = [entry.event.operation for entry in entries(production.folder / "audit")]
    # The last checkpoint covers all but its own signing.
    assert (operations[0], operations[-3:]) == (
        "service.start",
        ["service.stop"] + ["hsm.sign"] * 2,
    )
    assert check_checkpoint(production.folder / "audit", "keys.acme.example/one") == (
        len(operations) - 2
    )


PROBE = """
import ctypes, os, sys
from ironwork_server.app.hardening import deny_memory_reads
libc = ctypes.CDLL(None)
before = libc.prctl(3, 0, 0, 0, 0)
deny_memory_reads()
import resource
print(before, libc.prctl(3, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE), flush=True)
sys.stdin.read()
"""


def test_another_process_of_the_same_user_cannot_read_its_memory() -> None:
    """The process is not dumpable: no core file, no /proc/PID/mem for the same user (root may)."""
    with subprocess.Popen(
        [sys.executable, "-c", PROBE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().split() == ["1", "0", "0", "0"]
        # As root the read succeeds, whatever the flag says.
        if ctypes.CDLL(None).geteuid() != 0:
            with pytest.raises(PermissionError):
                Path(f"/proc/{process.pid}/mem").open("rb")  # noqa: SIM115  it does not open
        process.communicate()
