"""What a change does to the CPU that a call costs: this checkout's server and another's, in turn.

    git worktree add ../before <commit>
    .venv/bin/python bench/compare.py ../before [--rounds 8] [--seconds 2] [--streams 16]

Starts `ironwork-server dev` of each checkout, lets both idle, and lets open streams call
count_tokens on one and then on the other, round after round, so that what else the machine does
meets both alike. CPU is the server's own, and beside it the HSM process' with its child. Quote the
median of the rounds' ratios; under 5% is noise where the machine is shared.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil
from dev_server import warmed_up
from with_key import run, through_the_service

from ironwork_client import Profile

IDLE_S = 5.0


@dataclass
class Server:
    """A server under load. Lists have one item for each round; CPU in seconds."""

    name: str
    process: psutil.Process
    agent: Profile
    idle_ms: float = 0
    calls: list[int] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    hsm_cpu: list[float] = field(default_factory=list)

    def idle(self) -> None:
        """Milliseconds of CPU that it takes in a second without calls."""
        before = cpu_s([self.process])
        time.sleep(IDLE_S)
        self.idle_ms = (cpu_s([self.process]) - before) / IDLE_S * 1e3

    def round(self, streams: int, seconds: float) -> None:
        hsm = self._hsm_processes()
        before = cpu_s([self.process]), cpu_s(hsm)
        took = asyncio.run(
            run(streams, seconds, lambda until: through_the_service(self.agent, until))
        )
        self.calls.append(len(took))
        self.cpu.append(cpu_s([self.process]) - before[0])
        self.hsm_cpu.append(cpu_s(hsm) - before[1])

    def per_cpu_second(self) -> list[float]:
        """Calls for each second of the server's CPU, of each round."""
        return [calls / cpu for calls, cpu in zip(self.calls, self.cpu, strict=True)]

    def row(self, base: "Server") -> str:
        pairs = zip(self.per_cpu_second(), base.per_cpu_second(), strict=True)
        ratios = [own / other for own, other in pairs]
        calls = sum(self.calls)
        return (
            f"{self.name:<7} {calls / sum(self.cpu):>5.0f} calls per CPU-second of the server"
            f"  {sum(self.cpu) / calls * 1e6:>5.0f} us a call"
            f"  (HSM process {sum(self.hsm_cpu) / calls * 1e6:.0f})"
            f"  idle {self.idle_ms:.0f} ms/s"
            f"  ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )

    def _hsm_processes(self) -> list[psutil.Process]:
        return [
            child
            for child in self.process.children(recursive=True)
            if any("ironwork_hsm" in word for word in child.cmdline())
        ]


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """User and system time of all, in seconds."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--streams", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        other = warmed_up(Path(folder) / "a", checkout=options.before.resolve())
        before = Server("before", *stack.enter_context(other))
        now = Server("now", *stack.enter_context(warmed_up(Path(folder) / "b")))
        for one in (before, now):
            one.idle()
        for number in range(options.rounds):
            # Each is first as often as the other.
            for one in (before, now) if number % 2 else (now, before):
                one.round(options.streams, options.seconds)
        print(before.row(before), now.row(before), sep="\n")


if __name__ == "__main__":
    main()
