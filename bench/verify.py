"""How long `ironwork-audit verify` takes, and how much memory.

    .venv/bin/python bench/verify.py [--entries 1000000] [--workers 2] [--folder DIR]

Makes a log of calls as the service leaves them (WithKey's intent and outcome, and the unwrap's),
signs it, and runs the program on it as an auditor would. With --folder the log is kept, and used
again. Prints seconds, CPU seconds, entries a second, and the largest resident memory that was seen
of the program and its workers together, at the start and at the end.
"""

import argparse
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import psutil
from cryptography.hazmat.primitives.asymmetric import ed25519

from ironwork_audit import INTENT, OUTCOME, Event, render
from ironwork_audit.tlog import (
    TILE_WIDTH,
    Checkpoint,
    KeyType,
    Signature,
    TilePath,
    VerifierKey,
    format_note,
    leaf_hash,
    pack_bundle,
    pack_tile,
    root_of,
    tile_at,
)

ORIGIN = "bench.test/log"
START = datetime(2026, 11, 23, tzinfo=UTC)
SIGNER = ed25519.Ed25519PrivateKey.from_private_bytes(b"b" * 32)
KEY = VerifierKey(ORIGIN, KeyType.ED25519, SIGNER.public_key().public_bytes_raw())
PROGRAM = "from ironwork_audit.cli.main import main; raise SystemExit(main())"
UNWRAP = {"backend": "pkcs11:token=ironwork;object=master", "mechanism": "AES_GCM",
          "master_key_version": 1, "purpose": "use"}  # fmt: skip
REQUEST = {"method": "POST", "route": "messages", "policy_version": "0123456789abcdef"}


def entry(index: int) -> bytes:
    """Four entries a call: both intents, then the unwrap's outcome, then the call's."""
    call, step = divmod(index, 4)
    time_ = START + timedelta(milliseconds=index)
    answer = {
        "http_status": 200,
        "input_tokens": call % 90_000,
        "output_tokens": call % 4_000,
        "anthropic_request_id": f"req_{call:024}",
        "sent_upstream": True,
        "outcome": "COMPLETED",
        "request_bytes": 51_234,
        "response_bytes": call % 30_000,
        "duration_ms": call % 60_000,
        "key_mask": "sk-ant-api…wxyz",
    }
    event = Event(
        phase=INTENT if step < 2 else OUTCOME,
        operation="hsm.unwrap" if step in {1, 2} else "WithKey",
        correlation_id=f"{call:08x}-8d0b-4a3e-9a52-0c2f3a7a9a11",
        time=time_,
        principal=f"spiffe://ironwork.example/ws/acme/agent/build-{call % 500}",
        role="agent",
        workspace="acme",
        key_id=f"01HV6J3W7Z3C4{call % 20:04}",
        task=f"task-{call % 1000}",
        agent="claude-code/2.1",
        peer=f"ipv4:10.0.{call % 250}.{call % 249}:{1024 + call % 60_000}",
        success=None if step < 2 else True,
        details=(REQUEST, UNWRAP, UNWRAP, answer)[step],
        intent_index={2: index - 1, 3: index - 3}.get(step),
    )
    return render(event, origin=ORIGIN, sequence=index, logged_time=time_)


def put(folder: Path, tile: TilePath, data: bytes) -> None:
    path = folder / tile.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_bundle(folder: Path, size: int, number: int) -> bytes:
    """One bundle and its tile; the tile's root."""
    first = number * TILE_WIDTH
    entries = [entry(index) for index in range(first, min(first + TILE_WIDTH, size))]
    hashes = [leaf_hash(item) for item in entries]
    put(folder, tile_at(0, number, size).bundle, pack_bundle(entries))
    put(folder, tile_at(0, number, size), pack_tile(hashes))
    return root_of(hashes)


def write_log(folder: Path, size: int) -> None:
    bundles = -(-size // TILE_WIDTH)
    with ProcessPoolExecutor() as pool:
        row = list(pool.map(partial(write_bundle, folder, size), range(bundles), chunksize=64))
    root, level = root_of(row), 1
    while nodes := size >> (8 * level):
        for index in range(-(-nodes // TILE_WIDTH)):
            tile = tile_at(level, index, size)
            first = index * TILE_WIDTH
            put(folder, tile, pack_tile(row[first : first + tile.width]))
        full = [row[at : at + TILE_WIDTH] for at in range(0, len(row), TILE_WIDTH)]
        row, level = [root_of(part) for part in full if len(part) == TILE_WIDTH], level + 1
    text = Checkpoint(ORIGIN, size, root).text
    signature = Signature.of(KEY, SIGNER.sign(text.encode()))
    (folder / "checkpoint").write_bytes(format_note(text, [signature]))


class Memory(threading.Thread):
    """Samples a process and its children: resident bytes, together."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process(pid)
        self.samples: list[int] = []

    def run(self) -> None:
        try:
            while True:
                everyone = [self._process, *self._process.children(recursive=True)]
                self.samples.append(sum(process.memory_info().rss for process in everyone))
                time.sleep(0.05)
        except psutil.Error:
            return


def measure(folder: Path, workers: int, size: int) -> None:
    command = [sys.executable, "-c", PROGRAM, "verify", str(folder), "--key", str(KEY)]
    before = psutil.Process().cpu_times()
    started = time.monotonic()
    with psutil.Popen([*command, "--workers", str(workers)]) as process:
        memory = Memory(process.pid)
        memory.start()
        status = process.wait()
    seconds = time.monotonic() - started
    after = psutil.Process().cpu_times()
    cpu = (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    )
    third = len(memory.samples) // 3
    mib = [max(part, default=0) / 2**20 for part in (memory.samples[:third], memory.samples)]
    print(f"exit {status}; {workers} workers: {seconds:.1f} s, {cpu:.1f} s of CPU")
    print(f"{size / seconds:,.0f} entries/s, {cpu / size * 1e6:.1f} µs of CPU an entry")
    print(f"resident: {mib[0]:.0f} MiB in the first third, {mib[1]:.0f} MiB at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "checkpoint").exists():
            write_log(folder, options.entries)
        measure(folder, options.workers, options.entries)


if __name__ == "__main__":
    main()
