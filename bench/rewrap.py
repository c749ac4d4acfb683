"""How long `ironwork-server master-key rewrap` takes, and how much memory.

    .venv/bin/python bench/rewrap.py [--rows 100000] [--rate 100000]

Makes a store of keys on a SoftHSM token, rotates the master key, and moves every row with the
command's own code: each row an unwrap and a wrap in the HSM, four entries in a real audit log on
this disk, and a compare and swap. Prints rows a second, and resident memory after a tenth and at
the end.
"""

import argparse
import asyncio
import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

from ironwork_hsm import BackendOptions, WrappedKey
from ironwork_hsm.backends import open_backend
from ironwork_hsm.pkcs11.softhsm import create_token, use_config
from ironwork_server import store as stores
from ironwork_server.core.envelope import FORMAT, Binding, new_data_key, wrap_context
from ironwork_server.core.values import KeyState, SealedKey, StoredKey
from ironwork_server.custody.operator_records import OperatorRecords
from ironwork_server.custody.rewrap import Rewrapper
from ironwork_server.custody.rotate import rotate_master_key
from ironwork_server.journal import FileJournal
from ironwork_server.store import transactions
from ironwork_server.store.connection import DatabaseFile, Session

START = datetime(2026, 11, 23, tzinfo=UTC)


def row(binding: Binding, wrapped: WrappedKey) -> StoredKey:
    """A row whose data key really unwraps; what it seals is never looked at."""
    return StoredKey(
        workspace=binding.workspace,
        key_id=binding.key_id,
        sequence=binding.sequence,
        display_name="bench",
        mask="sk-ant-api…wxyz",
        state=KeyState.ACTIVE,
        organization_id="",
        created_at=binding.created_at,
        created_by="spiffe://bench.test/admin",
        validated_at=binding.created_at,
        fingerprint=os.urandom(32),
        sealed=SealedKey(FORMAT, os.urandom(12), os.urandom(124), wrapped),
    )


async def main(rows: int, rate: float, folder: Path) -> None:
    token = create_token(folder / "hsm", "bench")
    use_config(token.config)
    wrapper = await open_backend(
        token.uri, allow_missing=True, options=BackendOptions(queue=1024, deadline_s=60)
    )
    await wrapper.create_version()  # type: ignore[attr-defined]  # SoftHSM's backend can
    await wrapper.check()
    url = f"sqlite:///{folder / 'keys.db'}"
    stores.upgrade(url)
    bindings = [Binding(f"ws-{n % 1000}", f"key-{n}", n + 1, START) for n in range(rows)]
    file = Session(DatabaseFile(folder / "keys.db"), time.monotonic() + 60, begin="BEGIN IMMEDIATE")
    for begin in range(0, rows, 500):
        some = bindings[begin : begin + 500]
        wraps = await asyncio.gather(
            *(wrapper.wrap(new_data_key(), wrap_context(one)) for one in some)
        )
        with file.transaction(time.monotonic() + 60) as connection:
            for one, wrapped in zip(some, wraps, strict=True):
                transactions.add(
                    connection,
                    row(one, wrapped),
                    replay=None,
                    max_keys=10**9,
                    allow_different_organization=True,
                    now=START,
                )
    file.close()
    del bindings
    store = stores.open_store(url)
    journal = FileJournal.open(folder / "audit", "bench.test/commands")
    records = OperatorRecords(journal, "unix:0/bench")
    await rotate_master_key([wrapper], store, records)
    process, seen, memory = psutil.Process(), 0, dict[str, int]()

    def progress(count: int) -> None:
        nonlocal seen
        seen += count
        if "at a tenth" not in memory and seen >= rows / 10:
            memory["at a tenth"] = process.memory_info().rss

    async def put_into_tiles() -> None:
        # As the command does, whose checkpoints come twice a second.
        while True:
            await journal.integrate()
            await asyncio.sleep(0.5)

    tiles = asyncio.ensure_future(put_into_tiles())
    began, cpu = time.perf_counter(), time.process_time()
    report = await Rewrapper([wrapper], store, records, rate=rate, progress=progress).run()
    took, used = time.perf_counter() - began, time.process_time() - cpu
    memory["at the end"] = process.memory_info().rss
    tiles.cancel()
    await asyncio.wait([tiles])
    await journal.integrate()
    log = sum(path.stat().st_size for path in (folder / "audit").rglob("*") if path.is_file())
    print(
        f"{report.moved} rows in {took:.1f} s: {report.moved / took:.0f} a second, CPU {used:.1f} s"
    )
    print(", ".join(f"{size / 2**20:.0f} MiB {when}" for when, size in memory.items()))
    print(f"audit log: {log / 2**20:.0f} MiB, {log / max(rows, 1):.0f} bytes a row")
    await journal.close()
    await store.close()
    await wrapper.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=100_000.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(main(options.rows, options.rate, Path(temporary)))
