"""A collector (SIEM) that hangs: `ironwork-audit tail` and `export` into a pipe nobody reads."""

from __future__ import annotations

import asyncio
import fcntl
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fixtures.agent import Agent
from fixtures.log_check import held
from fixtures.server import AGENT, TestService
from fixtures.tlog_made import made_entries, write_log
from ironwork.keys.v1 import keys_pb2

DEADLINE_S = 60.0
CALLS = 20
PROGRAM = [sys.executable, "-c", "from ironwork_audit.cli.main import main; exit(main())"]


@contextmanager
def collecting(*arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, with the smallest pipe that there is and no reader yet."""
    with subprocess.Popen([*PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        try:
            yield process
        finally:
            process.kill()


async def stands(process: subprocess.Popen[bytes]) -> None:
    """Wait until the pipe is so full that the next entry does not fit, and it waits in a write."""
    async with asyncio.timeout(DEADLINE_S):
        while not blocked(process):  # noqa: ASYNC110 - a pipe tells nobody
            await asyncio.sleep(0.02)


def blocked(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdout is not None
    waiting = bytearray(4)
    fcntl.ioctl(process.stdout, termios.FIONREAD, waiting)
    full = int.from_bytes(waiting, sys.byteorder) > 2048
    state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    return full and state == "S"


async def call(service: TestService, times: int) -> None:
    """Claude requests, one after the other, each served whole."""
    agent = Agent(service.keys(AGENT), deadline_s=DEADLINE_S)
    await agent.start()
    for _ in range(times):
        assert (await agent.message()).end.outcome == keys_pb2.OUTCOME_COMPLETED
    await agent.close()


async def test_a_tail_that_nobody_reads(service: TestService) -> None:
    """It stands still by itself: calls go on, their entries are in the log, and when it is read
    again it shows every one, in order and once.
    """
    await service.add()
    log = service.settings.audit.folder
    with collecting("tail", log, "--json", "-n", "0") as process:
        await call(service, CALLS)
        await stands(process)
        before = len(held(log))
        await call(service, CALLS)
        assert len(held(log)) >= before + 4 * CALLS
        assert process.poll() is None
        assert blocked(process)
        assert process.stdout is not None
        read = await asyncio.to_thread(lines, process, 4 * CALLS)
    found = held(log)
    start = found.index(read[0])
    assert read == found[start : start + len(read)]


def lines(process: subprocess.Popen[bytes], count: int) -> list[bytes]:
    assert process.stdout is not None
    return [process.stdout.readline().rstrip(b"\n") for _ in range(count)]


@pytest.mark.parametrize("form", ["ocsf", "cef"])
async def test_an_export_that_nobody_reads(tmp_path: Path, form: str) -> None:
    """It holds neither the log's files nor its writer: the log grows while it stands, and it ends
    with what was in the log when it began.
    """
    events = made_entries(300)
    log = tmp_path / "log"
    write_log(log, events[:200])
    with collecting("export", log, "--format", form) as process:
        await stands(process)
        write_log(log, events)
        assert process.stdout is not None
        out = await asyncio.to_thread(process.stdout.read)
        assert process.wait(DEADLINE_S) == 0
    found = out.splitlines()
    assert len(found) == 200
    assert form != "ocsf" or found == events[:200]
