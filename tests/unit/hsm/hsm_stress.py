"""Not a test: the process that test_hsm_stress.py starts, and whose exit code it checks.

Usage: hsm_stress.py OPERATIONS (environment: SOFTHSM2_CONF; stdin: the token's URI). Exit code 0
and one JSON line where every answer was right; a crash of the module is any other exit code.
"""

import asyncio
import json
import os
import sys
import time

from ironwork_hsm import BackendOptions, BlobRejected, KeyWrapper, open_backend

LANES = 8
CALLERS = 32


async def caller(backend: KeyWrapper, number: int, operations: int, done: dict[str, int]) -> None:
    """A third each: wrap, unwrap in the right context, unwrap in a wrong one."""
    context = f"caller {number}".encode()
    data_key = os.urandom(32)
    wrapped = await backend.wrap(data_key, context)
    for turn in range(operations):
        kind = ("wrap", "unwrap", "reject")[(turn + number) % 3]
        if kind == "wrap":
            data_key = os.urandom(32)
            wrapped = await backend.wrap(data_key, context)
        elif kind == "unwrap":
            if await backend.unwrap(wrapped, context) != data_key:
                raise SystemExit("WRONG ANSWER: another key came back")
        else:
            try:
                await backend.unwrap(wrapped, context + b"!")
            except BlobRejected:
                pass
            else:
                raise SystemExit("WRONG ANSWER: a blob opened in a wrong context")
        done[kind] += 1


async def main(uri: str, operations: int) -> None:
    options = BackendOptions(lanes=LANES, deadline_s=60)
    backend = await open_backend(uri, options=options)
    done = {"wrap": 0, "unwrap": 0, "reject": 0}
    start = time.perf_counter()
    share, rest = divmod(operations, CALLERS)
    async with asyncio.TaskGroup() as group:
        for number in range(CALLERS):
            group.create_task(caller(backend, number, share + (number < rest), done))
    seconds = time.perf_counter() - start
    await backend.close()
    sys.stdout.write(json.dumps({**done, "seconds": round(seconds, 2)}) + "\n")


asyncio.run(main(sys.stdin.read().strip(), int(sys.argv[1])))
