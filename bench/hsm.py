"""Unwraps a second through the PKCS#11 backend, beside C_Decrypt on the same token in the same run.

    make bench-hsm                  # this and bench/hsm_slow.py
    .venv/bin/python bench/hsm.py [--rounds 25] [--seconds 0.2]

| row | what it does |
|---|---|
| raw | one thread calls C_DecryptInit and C_Decrypt with everything prepared, and nothing else |
| lane | one lane's thread does all that an unwrap does there, without the event loop |
| asyncio | `await backend.unwrap(…)` by so many callers, 4 lanes |
| workers | the same by 16 callers in each of so many processes at once; raw likewise |
| unix | the workers again, through one ironwork-hsmd (its CPU is not in theirs) |

Rows take turns, in short slices, so that a busy machine is the same for all. Quote the ratios to
raw; CPU is of the process, for each unwrap.
"""

import argparse
import asyncio
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ironwork_hsm import BackendOptions, KeyCreator, KeyWrapper, WrappedKey, open_backend
from ironwork_hsm.pkcs11 import rung
from ironwork_hsm.pkcs11.keys import find_keys
from ironwork_hsm.pkcs11.ladder import RUNGS
from ironwork_hsm.pkcs11.login import find_token
from ironwork_hsm.pkcs11.module import CkMechanism, load_module
from ironwork_hsm.pkcs11.raw import CKM_AES_GCM, GcmParameters, RawKey, copied
from ironwork_hsm.pkcs11.softhsm import SoftHsmToken, create_token
from ironwork_hsm.uri import parse_pkcs11_uri
from ironwork_server.app.dev.hsmd import hsmd

# As long as those of the envelope: workspace, key id, sequence, creation.
CONTEXT = bytes(80)
# What the backend binds: the context, and the master key's name, version and mechanism.
BOUND_BYTES = 160
CALLERS = (1, 16, 64)


def options(lanes: int) -> BackendOptions:
    return BackendOptions(lanes=lanes, queue=4096, deadline_s=30)


@dataclass
class Count:
    """What a row has come to so far."""

    done: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0

    def add(self, done: int, seconds: float, cpu_s: float) -> None:
        self.done += done
        self.seconds += seconds
        self.cpu_s += cpu_s

    @property
    def rate(self) -> float:
        return self.done / self.seconds

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / self.done * 1e6


class Rows:
    """All rows, in the order in which they were first measured."""

    def __init__(self) -> None:
        self._rows: dict[str, Count] = {}

    def add(self, name: str, done: int, seconds: float, cpu_s: float) -> None:
        self._rows.setdefault(name, Count()).add(done, seconds, cpu_s)

    def show(self, against: str) -> None:
        raw = self._rows[against]
        print(f"| | a second | of {against} | CPU µs for each |\n|---|---|---|---|")
        for name, row in self._rows.items():
            share = row.rate / raw.rate
            print(f"| {name} | {row.rate:,.0f} | {share:.2f} | {row.cpu_us:.0f} |")
        print(flush=True)


def decryptor(token: SoftHsmToken) -> tuple[Callable[[], None], Callable[[], None]]:
    """Raw C_Decrypt, and an unwrap as a lane does it, on a session of their own. A backend of this
    process must be open on the token: the login is the process's.
    """
    uri = parse_pkcs11_uri(token.uri)
    module = load_module(uri.module_path)
    session = find_token(module, uri).open()
    handle = find_keys(session, uri.object)[1].handle
    key = RawKey(module.functions, session.handle, handle)
    made_by, bound = RUNGS["aes-256-gcm"], bytes(BOUND_BYTES)
    blob = made_by.wrap(key, bytearray(32), bound)

    iv, associated, sealed = copied(blob[1:13]), copied(bound), copied(blob[13:])
    gcm = GcmParameters(ctypes.addressof(iv), 12, 96, ctypes.addressof(associated), len(bound), 128)
    mechanism = CkMechanism(CKM_AES_GCM, ctypes.addressof(gcm), ctypes.sizeof(gcm))
    result, length = ctypes.create_string_buffer(128), ctypes.c_ulong()
    to_mechanism, to_length = ctypes.byref(mechanism), ctypes.byref(length)
    start, operate = module.functions.C_DecryptInit, module.functions.C_Decrypt
    size, of = len(blob) - 13, session.handle

    def raw() -> None:
        length.value = 128
        if start(of, to_mechanism, handle) or operate(of, sealed, size, result, to_length):
            raise SystemExit("C_Decrypt failed")

    # The memory that the structures point to lives as long as the function.
    raw.memory = (iv, associated, gcm)  # type: ignore[attr-defined]

    def lane() -> None:
        rung.open_blob(made_by, key, blob, bound, canary=made_by)

    return raw, lane


def in_a_row(call: Callable[[], None], seconds: float) -> tuple[int, float, float]:
    """How many, seconds, seconds of CPU."""
    cpu, began, done = time.process_time(), time.perf_counter(), 0
    while (now := time.perf_counter()) < began + seconds:
        for _ in range(50):
            call()
        done += 50
    return done, now - began, time.process_time() - cpu


async def at_once(
    backend: KeyWrapper, wrapped: WrappedKey, callers: int, seconds: float
) -> tuple[int, float, float]:
    """The same through the backend."""
    cpu, began, done = time.process_time(), time.perf_counter(), 0

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < began + seconds:
            await backend.unwrap(wrapped, CONTEXT)
            done += 1

    await asyncio.gather(*(caller() for _ in range(callers)))
    return done, time.perf_counter() - began, time.process_time() - cpu


class Worker:
    """One process of the rows `workers`; it measures each time that a line comes."""

    def __init__(self, uri: str, seconds: float) -> None:
        command = [sys.executable, __file__, "--worker", uri, "--seconds", str(seconds)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answer()

    def ask(self, what: str) -> None:
        if self._process.stdin is None:
            raise TypeError("standard input is a pipe")
        print(what, file=self._process.stdin, flush=True)

    def answer(self) -> tuple[int, float, float]:
        if self._process.stdout is None:
            raise TypeError("standard output is a pipe")
        done, seconds, cpu = json.loads(self._process.stdout.readline())
        return done, seconds, cpu

    def end(self) -> None:
        self._process.communicate(timeout=60)


async def work(uri: str, seconds: float) -> None:
    """A worker process. Its first blob is made by itself: all workers share the master key."""
    backend = await open_backend(uri, options=options(4))
    wrapped = await backend.wrap(bytes(32), CONTEXT)
    raw = None
    if uri.startswith("pkcs11:"):
        raw, _ = decryptor_of(uri)
    print(json.dumps([0, 0, 0]), flush=True)
    for line in sys.stdin:
        if line.strip() == "raw" and raw is not None:
            print(json.dumps(in_a_row(raw, seconds)), flush=True)
        else:
            print(json.dumps(await at_once(backend, wrapped, 16, seconds)), flush=True)
    await backend.close()


def decryptor_of(uri: str) -> tuple[Callable[[], None], Callable[[], None]]:
    empty = Path()
    return decryptor(
        SoftHsmToken(label="", uri=uri, config=empty, pin_file=empty, so_pin_file=empty, env={})
    )


async def throughput(token: SoftHsmToken, rounds: int, seconds: float) -> None:
    """One process, then one and two workers, against raw."""
    backend = await open_backend(token.uri, allow_missing=True, options=options(4))
    if not isinstance(backend, KeyCreator):
        raise TypeError("SoftHSM creates keys")
    await backend.create_version()
    wrapped = await backend.wrap(bytes(32), CONTEXT)
    raw, lane = decryptor(token)
    rows = Rows()
    for _ in range(rounds):
        rows.add("raw", *in_a_row(raw, seconds))
        rows.add("lane", *in_a_row(lane, seconds))
        for callers in CALLERS:
            found = await at_once(backend, wrapped, callers, seconds)
            rows.add(f"asyncio, {callers} callers", *found)
    rows.show("raw")
    await backend.close()


def scaling(uris: list[str], rounds: int, seconds: float) -> None:
    """What one and two worker processes do together, by each way, against one that does it raw."""
    workers = {uri: [Worker(uri, seconds) for _ in range(2)] for uri in uris}
    rows = Rows()
    for _ in range(rounds):
        for uri, both in workers.items():
            scheme = uri.partition(":")[0]
            for count in (1, 2):
                plural = "worker" if count == 1 else "workers"
                if scheme == "pkcs11":
                    rows.add(f"raw, {count} {plural}", *together(both[:count], "raw"))
                rows.add(f"{scheme}:, {count} {plural}", *together(both[:count], "unwrap"))
    rows.show("raw, 1 worker")
    for both in workers.values():
        for worker in both:
            worker.end()


def together(workers: list[Worker], what: str) -> tuple[int, float, float]:
    """All at once: how many in all, the longest's seconds, all their CPU."""
    for worker in workers:
        worker.ask(what)
    answers = [worker.answer() for worker in workers]
    return (
        sum(done for done, _, _ in answers),
        max(seconds for _, seconds, _ in answers),
        sum(cpu for _, _, cpu in answers),
    )


async def through_hsmd(token: SoftHsmToken, folder: Path, rounds: int, seconds: float) -> None:
    """The workers in this machine's process, and through one HSM process."""
    async with hsmd(folder / "hsmd", token) as uri:
        await asyncio.to_thread(scaling, [token.uri, uri], rounds, seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        asyncio.run(work(chosen.worker, chosen.seconds))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        token = create_token(folder / "token", "bench")
        os.environ.update(token.env)
        asyncio.run(throughput(token, chosen.rounds, chosen.seconds))
        asyncio.run(through_hsmd(token, folder, chosen.rounds, chosen.seconds))


if __name__ == "__main__":
    main()
