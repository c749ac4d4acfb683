"""A real serving process whose log's disk fails under it: nothing is unwrapped, nothing is sent to
Anthropic, health tells, and it goes on by itself only where that is safe. The faults are the
kernel's own: a file system that is full, calls that strace makes fail, a folder that is deleted.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.log_check import held
from fixtures.processes import dev
from fixtures.watching import IN_MEMORY, Response, own_mount, restarted, watching
from ironwork_audit import parse

SLOW = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    "call", ["fdatasync:error=EIO", pytest.param("pwrite64:error=EROFS", marks=SLOW)]
)
async def test_a_write_ahead_file_that_fails_ends_it(
    dev_state: Path, tmp_path: Path, call: str
) -> None:
    """From the failed call on nothing is done and the file is not touched again, although the
    server lives on; a restart on a disk that is well goes on, and nothing that was answered is
    missing.
    """
    trace = tmp_path / "trace"
    name = call.partition(":")[0]
    files = [
        part for number in (0, 1) for part in ("-P", str(dev_state / "audit" / f"pending.{number}"))
    ]
    # -D: the process that is started is the server, not strace.
    inside = ["strace", "-D", "-f", "--seccomp-bpf", "-o", str(trace), *files]
    # Each thread counts for itself, and one thread appends.
    inside += ["-e", "trace=fdatasync,pwrite64,ftruncate", "-e", f"inject={call}:when=40+"]
    with dev(dev_state, inside=inside) as server:
        async with watching(server) as seen:
            await seen.serves_until_refused()
            await seen.become(Response.NOT_SERVING)
            await seen.refuses_and_does_nothing()
        server.running.signal()
        server.running.wait()
    calls = [line for line in trace.read_text().splitlines() if "= " in line]
    failed = [number for number, line in enumerate(calls) if "(INJECTED)" in line]
    assert len(failed) == 1, "it is not tried again"
    after = calls[failed[0] + 1 :]
    assert [line for line in after if "fdatasync" in line or "pwrite64" in line] == []
    assert name in calls[failed[0]]
    verdict = await restarted(dev_state)
    assert verdict.unfinished <= 3, "a call's, its unwrap's, and a checkpoint's signing"


async def test_a_disk_that_is_full_and_then_is_not(dev_state: Path, tmp_path: Path) -> None:
    """On a file system without a free block health tells before any call meets it, nothing is done,
    and all ends by itself when there is room again.
    """
    log = dev_state / "audit"
    with (
        own_mount(log, IN_MEMORY, tmp_path / "mount") as mounted,
        dev(dev_state, inside=mounted.inside) as server,
    ):
        async with watching(server) as seen:
            await seen.serves()
            mounted.run(f"head -c 8m /dev/zero > {log}/filler")
            await seen.become(Response.NOT_SERVING)
            await seen.refuses_and_does_nothing()
            mounted.run(f"rm {log}/filler")
            await seen.become(Response.SERVING)
            await seen.serves()
        server.running.signal()
        assert server.running.wait() == 0
    assert "journal.resumed" in server.running.log.read_text()


def delete_folder(log: Path) -> None:
    shutil.rmtree(log)


def delete_tiles(log: Path) -> None:
    shutil.rmtree(log / "tile")


def delete_file(log: Path) -> None:
    for name in ("pending.0", "pending.1"):
        (log / name).unlink()


@pytest.mark.parametrize(
    "delete",
    [
        delete_folder,
        pytest.param(delete_tiles, marks=SLOW),
        pytest.param(delete_file, marks=SLOW),
    ],
)
async def test_a_log_that_is_deleted_is_told_at_once(
    dev_state: Path, delete: Callable[[Path], None]
) -> None:
    """Health tells before any call meets it; nothing is done any more, and nothing is put where the
    log was.
    """
    with dev(dev_state) as server:
        async with watching(server) as seen:
            await seen.serves()
            delete(dev_state / "audit")
            await seen.become(Response.NOT_SERVING)
            await seen.refuses_and_does_nothing()
        left = {path.name for path in (dev_state / "audit").rglob("*")}
    assert not {"checkpoint.new", "000.new"} & left
    assert delete is not delete_folder or not left


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_kill_leaves_at_most_the_calls_in_flight(dev_state: Path) -> None:
    """After `kill -9` of a server the next one marks what it left, and the log verifies."""
    with dev(dev_state) as server:
        async with watching(server) as seen:
            for _ in range(3):
                await seen.serves()
            server.running.process.kill()
            server.running.process.wait()
    verdict = await restarted(dev_state)
    found = [parse(entry).event for entry in held(dev_state / "audit")]
    marks = [event for event in found if event.operation == "journal.unfinished"]
    assert verdict.unfinished == sum(int(mark.details["count"]) for mark in marks)
