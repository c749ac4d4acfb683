"""The journal in a process whose system calls fail for real (strace's fault injection)."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures import journal_child
from fixtures.journal_events import ORIGIN, entries
from fixtures.log_check import tiled
from ironwork_server.journal import FileJournal


def acknowledged_until(folder: Path, injected: str) -> tuple[dict[int, str], str]:
    """What a writer acknowledged before the fault, and what it said of it."""
    child = subprocess.run(
        [
            "strace", "--follow-forks", "--quiet=all", "--output=/dev/null",
            "--trace=fdatasync,fsync,pwrite64,rename", f"--inject={injected}",
            sys.executable, journal_child.__file__, str(folder), ORIGIN, "0",
        ],
        capture_output=True,
        timeout=30,
        check=False,
    )  # fmt: skip
    assert child.returncode == 7, child.stderr.decode()
    return acknowledgements(child.stdout), child.stderr.decode()


def acknowledgements(output: bytes) -> dict[int, str]:
    """Correlation ids by index, as the child writes them."""
    said = dict(line.decode().split(" ", 1) for line in output.splitlines())
    return {int(index): correlation for index, correlation in said.items()}


@pytest.mark.parametrize(
    ("injected", "problem"),
    [
        ("fdatasync:error=EIO:when=40+", "fdatasync failed (EIO)"),
        ("fdatasync:error=ENOSPC:when=41+", "fdatasync failed (ENOSPC)"),
        ("pwrite64:error=EIO:when=60+", "(EIO)"),
        ("pwrite64:error=ENOSPC:when=61+", "(ENOSPC)"),
        ("pwrite64:error=EROFS:when=62+", "(EROFS)"),
    ],
)
def test_a_system_call_that_fails(tmp_path: Path, injected: str, problem: str) -> None:
    """Whatever call fails, in a commit or in a tile: the process fails closed and says why, and
    after a restart everything acknowledged is there, in a log that verifies.
    """
    folder = tmp_path / "journal"
    acknowledged, said = acknowledged_until(folder, injected)
    assert "failed closed" in said
    if "sync" in injected:
        assert problem in said
    everything_is_there(folder, acknowledged)


def test_a_folder_whose_sync_fails(tmp_path: Path) -> None:
    """So it does where the names of tiles cannot be made durable, from some moment on."""
    folder = tmp_path / "journal"
    command = [sys.executable, journal_child.__file__, str(folder), ORIGIN, "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        # strace counts calls by thread, and tiles are written in threads of their own: so it comes
        # when the log is open, and fails every such call.
        strace = subprocess.Popen(
            ["strace", "--follow-forks", "--quiet=all", "--output=/dev/null", "--trace=fsync",
             "--inject=fsync:error=EIO", f"--attach={child.pid}"]
        )  # fmt: skip
        rest, said = child.communicate(timeout=60)
        strace.wait(timeout=30)
    assert child.returncode == 7
    assert "fsync of a folder failed (EIO)" in said.decode()
    everything_is_there(folder, acknowledgements(first + rest))


def everything_is_there(folder: Path, acknowledged: dict[int, str]) -> None:
    """After a restart, in a log that verifies."""
    asyncio.run(FileJournal.open(folder, ORIGIN).close())
    found = entries(folder)
    assert acknowledged
    for index, correlation in acknowledged.items():
        assert found[index].event.correlation_id == correlation
    assert len(tiled(folder)) == len(found)
