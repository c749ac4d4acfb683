"""Appends to the audit log: how many a second, and how long each takes, with tiles being written
beside them as in a service, and without. Prints one JSON line for each run.

    .venv/bin/python bench/journal.py FOLDER [SECONDS]

Ratios between runs on one machine are what counts: the disk decides the rest.
"""

import asyncio
import contextlib
import json
import resource
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from ironwork_server.core.values import AuditEvent, Claims, Phase
from ironwork_server.journal import FileJournal


def event(number: int) -> AuditEvent:
    return AuditEvent(
        Phase.INTENT,
        "hsm.unwrap",
        f"c-{number}",
        datetime.now(UTC),
        principal="spiffe://bench.test/workspace/acme/agent/coder",
        role="agent",
        workspace="acme",
        key_id="5f0c6c1e9b1d4c57",
        claims=Claims(task="t", agent="a", peer="ipv4:127.0.0.1:4711"),
        details={"backend": "pkcs11:token=t", "master_key_version": 1, "mechanism": "aes-256-gcm"},
    )


async def publish(journal: FileJournal) -> None:
    while True:
        await asyncio.sleep(0.5)
        await journal.integrate()


async def run(folder: Path, tasks: int, seconds: float, *, tiles: bool) -> None:
    journal = FileJournal.open(folder, "bench.test/journal")
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def one() -> None:
        while (began := time.perf_counter()) < end:
            await journal.append(event(len(took)))
            took.append(time.perf_counter() - began)

    publisher = asyncio.create_task(publish(journal)) if tiles else None
    before = resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.gather(*(one() for _ in range(tasks)))
    after = resource.getrusage(resource.RUSAGE_SELF)
    if publisher is not None:
        publisher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await publisher
    await journal.close()
    took.sort()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        json.dumps(
            {
                "at_once": tasks,
                "tiles": tiles,
                "appends_per_s": round(len(took) / seconds),
                "p50_ms": round(took[len(took) // 2] * 1e3, 2),
                "p99_ms": round(took[len(took) * 99 // 100] * 1e3, 2),
                "max_ms": round(took[-1] * 1e3, 1),
                "cpu_us_each": round(cpu / len(took) * 1e6),
            }
        )
    )


def main() -> None:
    root = Path(sys.argv[1])
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 5.0
    for tasks in (1, 16, 64):
        for tiles in (False, True):
            asyncio.run(run(root / f"{tasks}-{tiles}", tasks, seconds, tiles=tiles))


if __name__ == "__main__":
    main()
