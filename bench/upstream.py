"""Upstream clients against each other: what a call costs, and what each can and cannot do.

    make bench-upstream        (.venv-bench/bin/python bench/upstream.py [--seconds 4] [--rounds 3])

All candidates call the same process over TLS on loopback, each from a process of its own, in turn,
with 16 calls at once: POST with 200 bytes; 500 bytes of JSON come back, or 100 events of SSE. What
is told is calls for each second of the *client's* CPU (all its threads), and the ratio to ours in
the same round. The second table is of properties, each shown by a probe (upstream_probes.py).
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from upstream_clients import CANDIDATES, Client
from upstream_probes import print_properties

from ironwork_server.app.devpki import DevCa

HERE = Path(__file__).parent
KINDS = {"500 bytes": "/unary", "SSE, 100 events": "/sse"}


async def load(client: Client, path: str, seconds: float, concurrency: int) -> dict[str, float]:
    """Call for that long: calls, pieces, and seconds of this process' CPU."""
    done = pieces = 0

    def count(chunk: bytes) -> None:
        nonlocal pieces
        pieces += 1

    async def one(until: float) -> None:
        nonlocal done
        while time.perf_counter() < until:
            if await client.call(path, count) != 200:
                raise SystemExit("a call failed")
            done += 1

    async def all_until(until: float) -> None:
        await asyncio.gather(*(one(until) for _ in range(concurrency)))

    await all_until(time.perf_counter() + 0.5)  # connections, and what is made at first use
    done = pieces = 0
    before = time.process_time()
    await all_until(time.perf_counter() + seconds)
    cpu = time.process_time() - before
    await client.close()
    return {"calls": done, "pieces": pieces, "cpu": cpu}


def measured(name: str, port: int, ca: Path, path: str, options: argparse.Namespace) -> float:
    """Calls for each second of CPU, from a process of its own."""
    command = [sys.executable, __file__, "--client", name, "--port", str(port), "--ca", str(ca)]
    command += ["--path", path, "--seconds", str(options.seconds)]
    command += ["--concurrency", str(options.concurrency)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    told = json.loads(done.stdout)
    return float(told["calls"] / told["cpu"])


@contextmanager
def a_peer(folder: Path) -> Iterator[tuple[int, Path]]:
    """The upstream process: its port and its CA."""
    ca = DevCa.create()
    ca.server_certificate().write(folder / "peer.pem", folder / "peer-key.pem")
    (folder / "ca.pem").write_bytes(ca.certificate_pem)
    command = [sys.executable, str(HERE / "upstream_peer.py")]
    command += [str(folder / "peer.pem"), str(folder / "peer-key.pem")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as peer:
        try:
            if peer.stdout is None:
                raise TypeError("standard output is a pipe")
            yield int(peer.stdout.readline()), folder / "ca.pem"
        finally:
            peer.terminate()


def measure(options: argparse.Namespace) -> None:
    """The first table: the median of the rounds, and of their ratios to ours."""
    with tempfile.TemporaryDirectory() as folder, a_peer(Path(folder)) as (port, ca):
        for kind, path in KINDS.items():
            print(f"\n{kind}, {options.concurrency} at once, load {os.getloadavg()[0]:.1f}")
            rounds = [
                {name: measured(name, port, ca, path, options) for name in CANDIDATES}
                for _ in range(options.rounds)
            ]
            ours = next(iter(CANDIDATES))
            for name in CANDIDATES:
                ratios = sorted(each[name] / each[ours] for each in rounds)
                print(
                    f"| {name:<24} | {statistics.median(each[name] for each in rounds):>6.0f}"
                    f" | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
                )


def main() -> None:
    """Measure and print; with --client, be one of the clients."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--client", choices=CANDIDATES)
    parser.add_argument("--port", type=int)
    parser.add_argument("--ca", type=Path)
    parser.add_argument("--path")
    options = parser.parse_args()
    if options.client is None:
        measure(options)
        print_properties()
        return

    async def run() -> dict[str, float]:
        client = CANDIDATES[options.client](options.port, options.ca)
        return await load(client, options.path, options.seconds, options.concurrency)

    print(json.dumps(asyncio.run(run())), flush=True)
    # Without finalizing: pyreqwest's thread was seen to abort the interpreter there.
    os._exit(0)


if __name__ == "__main__":
    main()
