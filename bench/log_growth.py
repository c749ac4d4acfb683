"""What a log of a million entries costs a server: its start, its memory, a page of it.

    .venv/bin/python bench/log_growth.py [--entries 1000000] [--json]

A throw-away `dev` makes its state and stops; its log is then grown by the server's own writer,
without syncs, with the entries that calls leave; then `dev` is started on it: after a clean end,
after `kill -9`, and, for comparison, on an empty log; and `serve`, with files of its own, likewise
and without the log's snapshot. Prints the seconds to serving (of the whole program: interpreter,
SoftHSM, log; of `dev` the simulator and the HSM process too), the resident memory of the writer as
the log grew and of the server at each start, and the time of a search through all entries by a
filter that none passes. The log alone is opened too, in wall and CPU seconds.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import verify
from serving import Serving

from ironwork_audit.file_format import parse_header
from ironwork_audit.log import AppendLog, OperatingSystem
from ironwork_client import AuditClient, Profile
from ironwork_server.journal.state import LogState

BATCH = 64
# Batches: about what half a second of full load brings.
INTEGRATE_EVERY = 16
START_DEADLINE_S = 300


class Unsynced(OperatingSystem):
    """Growing is not what is measured."""

    def fdatasync(self, fd: int) -> None:
        """Nothing."""

    def sync_folder(self, folder: Path) -> None:
        """Nothing."""


@dataclass
class Start:
    """seconds: to the line that says it serves. rss_mib: the server's, after the search, which took
    search_s.
    """

    seconds: float
    rss_mib: float
    search_s: float


@dataclass
class Result:
    """starts: of `dev`, by what the log was; serve_s: wall and CPU seconds of `serve`;
    open_s: likewise, of opening the log alone. writer_mib: resident memory at each fifth of the
    growth.
    """

    entries: int
    grow_s: float = 0.0
    open_s: dict[str, tuple[float, float]] = field(default_factory=dict)
    serve_s: dict[str, tuple[float, float]] = field(default_factory=dict)
    writer_mib: list[float] = field(default_factory=list)
    starts: dict[str, Start] = field(default_factory=dict)


def start(state: Path, stop: signal.Signals) -> Start:
    """Start `dev`, look at it, end it by this signal."""
    began = time.monotonic()
    with (state.parent / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ironwork_server", "dev", "--json"),
                *("--state", str(state), "--listen", "127.0.0.1:0"),
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    try:
        if not process.stdout.readline():
            raise SystemExit((state.parent / "log").read_text())
        seconds = time.monotonic() - began
        time.sleep(2)
        page_s = page(state)
        rss = psutil.Process(process.pid).memory_info().rss
        process.send_signal(stop)
        process.wait(START_DEADLINE_S)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
    return Start(round(seconds, 2), round(rss / 2**20, 1), round(page_s, 3))


def page(state: Path) -> float:
    """Seconds until the whole log was searched for entries that are not there."""
    with AuditClient(Profile.load(state / "profiles" / "auditor.toml")) as client:
        began = time.monotonic()
        for _ in client.entries(workspace="workspaces/nobody"):
            raise SystemExit("there is no such workspace")
        return time.monotonic() - began


def grow(folder: Path, entries: int, result: Result) -> None:
    origin = parse_header((folder / "origin").read_bytes())
    log = AppendLog.open(folder, origin, fold=LogState(), file_system=Unsynced())
    verify.ORIGIN = origin  # type: ignore[misc]  # the entries are to be of this log
    process, began = psutil.Process(), time.monotonic()
    batches = entries // BATCH
    for batch in range(batches):
        if batch % (batches // 5) == 0:
            result.writer_mib.append(round(process.memory_info().rss / 2**20, 1))
        log.append([verify.entry] * BATCH)
        if batch % INTEGRATE_EVERY == 0:
            log.integrate()
    log.close()
    result.grow_s = round(time.monotonic() - began, 1)


def opening(folder: Path) -> tuple[float, float]:
    """Seconds for the log alone, and those of CPU."""
    origin = parse_header((folder / "origin").read_bytes())
    began, cpu = time.monotonic(), time.process_time()
    log = AppendLog.open(folder, origin, fold=LogState())
    took = time.monotonic() - began, time.process_time() - cpu
    log.close()
    return round(took[0], 3), round(took[1], 3)


def serving(place: Path, grown: Path, result: Result) -> None:
    """`serve` on an empty log, and on this one: after a clean end, after kill -9, and without the
    snapshot.
    """
    subject = Serving.make(place, parse_header((grown / "origin").read_bytes()))
    with subject.started() as result.serve_s["empty"]:
        pass
    (place / "db" / "keys.db").unlink()  # it knows the empty log as this origin's
    subject.run("db", "upgrade")
    subject.take_log(grown)
    for name, stop in (("grown", signal.SIGKILL), ("grown, after kill -9", signal.SIGTERM)):
        with subject.started(stop) as result.serve_s[name]:
            pass
    (subject.audit / "snapshot").unlink()
    result.open_s["grown, without its snapshot"] = opening(subject.audit)
    (subject.audit / "snapshot").unlink()
    with subject.started() as result.serve_s["grown, without its snapshot"]:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = Result(options.entries)
    with tempfile.TemporaryDirectory() as place:
        state = Path(place) / "state"
        start(state, signal.SIGTERM)
        result.open_s["empty"] = opening(state / "audit")
        result.starts["empty"] = start(state, signal.SIGTERM)
        grow(state / "audit", options.entries, result)
        result.open_s["grown"] = opening(state / "audit")
        result.starts["grown"] = start(state, signal.SIGKILL)
        result.starts["grown, after kill -9"] = start(state, signal.SIGTERM)
        serving(Path(place) / "serve", state / "audit", result)
    if options.json:
        print(json.dumps(asdict(result)))
        return
    print(f"{result.entries} entries, grown in {result.grow_s} s")
    print(f"seconds to open the log alone (wall, CPU): {result.open_s}")
    print(f"seconds from starting `serve` to serving (wall, CPU): {result.serve_s}")
    print(f"writer's resident memory (MiB): {result.writer_mib}")
    for name, figures in result.starts.items():
        print(f"{name}: {figures.seconds} s to serving, {figures.rss_mib} MiB;", end=" ")
        print(f"{figures.search_s} s for a search through all")


if __name__ == "__main__":
    os.environ.pop("IRONWORK_CONFIG", None)
    main()
