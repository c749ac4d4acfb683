"""A real serving process whose log's file system becomes read-only, by the kernel's own doing: a
read-only mount laid over the folder, and an ext4 that stopped at an error of its own.
"""

import asyncio
import os
from pathlib import Path

import pytest

from fixtures.processes import dev
from fixtures.watching import IN_MEMORY, Response, own_mount, verified, watching

SLOW = [pytest.mark.slow, pytest.mark.timeout(1800)]


async def run(program: str, *arguments: str | Path) -> int:
    """A program to its end; its exit code."""
    async with asyncio.timeout(60):
        return await (await asyncio.create_subprocess_exec(program, *arguments)).wait()


@pytest.mark.parametrize(
    "busy", [pytest.param(False, marks=SLOW, id="idle"), pytest.param(True, id="under calls")]
)
async def test_a_read_only_mount_over_the_log(dev_state: Path, tmp_path: Path, busy: bool) -> None:
    """The kernel remounts no file system read-only under the log's open files; a read-only mount
    laid over the folder stops everything at once, although those files still take writes, and all
    ends by itself when it is writable again.
    """
    log, answer = dev_state / "audit", tmp_path / "answer"
    with (
        own_mount(log, IN_MEMORY, tmp_path / "mount") as mounted,
        dev(dev_state, inside=mounted.inside) as server,
    ):
        async with watching(server) as seen:
            mounted.run(f"mount -o remount,ro {log} || mkfifo {answer} && echo refused > {answer}")
            while not answer.exists():
                await seen.serves()
            assert await asyncio.to_thread(answer.read_text) == "refused\n"
            await seen.serves()
            mounted.run(f"mount --bind {log} {log} && mount -o remount,bind,ro {log}")
            if busy:
                await seen.serves_until_refused()
            await seen.become(Response.NOT_SERVING)
            await seen.refuses_and_does_nothing()
            mounted.run(f"mount -o remount,bind,rw {log}")
            await seen.become(Response.SERVING)
            await seen.serves()
        server.running.signal()
        assert server.running.wait() == 0
        mounted.copy_out(log, tmp_path / "after")
    assert "journal.resumed" in server.running.log.read_text()
    assert verified(dev_state, tmp_path / "after").unfinished <= 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_an_ext4_that_stops_at_an_error(dev_state: Path, tmp_path: Path) -> None:
    """It is read-only to whoever writes and says so to nobody else (statvfs): an idle server tells
    before any call meets it, and does nothing. The kernel takes no writes on it again, so what
    helps is e2fsck and a restart; nothing that was answered is missing. (Loop devices want root.)
    """
    log, image = dev_state / "audit", tmp_path / "image"
    image.touch()
    os.truncate(image, 16 << 20)
    assert await run("mkfs.ext4", "-q", "-F", image) == 0
    mount = f'mount -o loop,errors=remount-ro {image} "$0"'
    filled = f'{mount} && cp -a "$1/." "$0" && sync -f "$0"'
    with (
        own_mount(log, filled, tmp_path / "first") as mounted,
        dev(dev_state, inside=mounted.inside) as server,
    ):
        async with watching(server) as seen:
            await seen.serves()
            mounted.run(
                f"echo 1 > /sys/fs/ext4/$(basename $(findmnt -n -o SOURCE {log}))/trigger_fs_error"
            )
            await seen.become(Response.NOT_SERVING)
            await seen.refuses_and_does_nothing()
        server.running.signal()
        assert server.running.wait() == 0
        mounted.run(f"umount {log}")
    assert await run("e2fsck", "-fy", image) in {0, 1}
    with own_mount(log, mount, tmp_path / "second") as mounted:
        with dev(dev_state, inside=mounted.inside) as server:
            async with watching(server) as seen:
                await seen.serves()
            server.running.signal()
            assert server.running.wait() == 0
        mounted.copy_out(log, tmp_path / "after")
    assert verified(dev_state, tmp_path / "after").unfinished <= 3
