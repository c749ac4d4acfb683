"""What overwriting freed memory costs: the same load on two servers, with it and without, in turn.

    .venv/bin/python bench/allocator.py [--rounds 4] [--seconds 5] [--streams 16]

Starts `ironwork-server dev` twice, once with `--plain-allocator`, and lets open streams call
count_tokens on one and then on the other, round after round, so that what else the machine does
meets both alike. Quote the ratio of calls for each second of the server's own CPU.
"""

import argparse
import asyncio
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil
from dev_server import warmed_up
from with_key import run, through_the_service

from ironwork_client import Profile


@dataclass
class Server:
    """A server under load. calls, cpu_s, took: of all rounds."""

    name: str
    process: psutil.Process
    agent: Profile
    calls: int = 0
    cpu_s: float = 0
    seconds: float = 0
    took: list[float] = field(default_factory=list)

    def round(self, streams: int, seconds: float) -> None:
        before = sum(self.process.cpu_times()[:2])
        took = asyncio.run(
            run(streams, seconds, lambda until: through_the_service(self.agent, until))
        )
        self.cpu_s += sum(self.process.cpu_times()[:2]) - before
        self.calls += len(took)
        self.seconds += seconds
        self.took += took

    def row(self) -> str:
        return (
            f"{self.name:<22} {self.calls / self.seconds:>6.0f} calls/s"
            f"  p50 {median(self.took) * 1e3:>6.1f} ms"
            f"  {self.calls / self.cpu_s:>6.0f} calls per CPU-second of the server"
            f"  {self.process.memory_info().rss / 2**20:>4.0f} MiB resident"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--streams", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        plain_server = warmed_up(Path(folder) / "a", "--plain-allocator")
        plain = Server("plain", *stack.enter_context(plain_server))
        overwriting = Server("overwriting", *stack.enter_context(warmed_up(Path(folder) / "b")))
        for number in range(options.rounds):
            # Each is first as often as the other.
            both = (plain, overwriting) if number % 2 else (overwriting, plain)
            for one in both:
                one.round(options.streams, options.seconds)
        print(plain.row(), overwriting.row(), sep="\n")
        ratio = (overwriting.calls / overwriting.cpu_s) / (plain.calls / plain.cpu_s)
        print(f"calls per CPU-second, overwriting to plain: {ratio:.2f}")


if __name__ == "__main__":
    main()
