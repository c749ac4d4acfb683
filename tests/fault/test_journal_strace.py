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
    said = dict(line.decode().split(" ", 1) for line in child.stdout.splitlines())
    return {int(index): correlation for index, correlation in said.items()}, child.stderr.decode()


@pytest.mark.parametrize(
    ("injected", "problem"),
    [
        ("fdatasync:error=EIO:when=40+", "fdatasync failed (EIO)"),
        ("fdatasync:error=ENOSPC:when=41+", "fdatasync failed (ENOSPC)"),
        # strace counts by thread; each integration has one of its own, and this is its last sync.
        ("fsync:error=EIO:when=6+", "fsync of a folder failed (EIO)"),
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
    asyncio.run(FileJournal.open(folder, ORIGIN).close())
    found = entries(folder)
    assert acknowledged
    for index, correlation in acknowledged.items():
        assert found[index].event.correlation_id == correlation
    assert len(tiled(folder)) == len(found)
