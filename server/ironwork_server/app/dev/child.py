"""Ending a process that a dev server started."""

import asyncio


async def end(process: asyncio.subprocess.Process, *, deadline_s: float) -> None:
    """Ask it to end, and kill it where it has not by the deadline (seconds). Safe to call again."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(deadline_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
