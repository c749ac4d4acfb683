"""`ironwork-audit reconcile`."""

import argparse
from collections.abc import Callable, Sequence
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ironwork_audit.cli import show
from ironwork_audit.cli.options import WrongUsage
from ironwork_audit.cli.selection import milliseconds
from ironwork_audit.reconcile.calls import NotARecord, Recorded
from ironwork_audit.reconcile.cloudtrail import read_cloudtrail
from ironwork_audit.reconcile.device import Expect, Period, Result, reconcile
from ironwork_audit.reconcile.expected import UnknownStep, slots_for_kms, slots_for_pkcs11
from ironwork_audit.reconcile.hsmd import reconcile_hsmd
from ironwork_audit.reconcile.logs import entries_of, is_open_ended
from ironwork_audit.reconcile.spy import read_spy
from ironwork_audit.reconcile.steps import Step, StepReader
from ironwork_audit.reconcile.store import Lives, read_export, reconcile_store
from ironwork_audit.select import BadEntry
from ironwork_audit.source import Unreadable

HELP: Final = "hold logs against the HSM's own log, a cloud's, the HSM process's, or the store"
_SHOWN: Final = 1000
# One machine's clock, cut to milliseconds; a cloud's is another machine's.
_SKEW_S: Final = {"spy": 0.05, "cloudtrail": 5.0, "hsmd": 1.0, "store": 1.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "logs",
        metavar="LOG",
        nargs="+",
        help="the folder, or the URL, of each log whose process used the HSM (or the store)",
    )
    against = parser.add_mutually_exclusive_group(required=True)
    against.add_argument(
        "--spy", type=Path, action="append", metavar="FILE", help="pkcs11-spy's log (again: more)"
    )
    against.add_argument(
        "--cloudtrail",
        type=Path,
        action="append",
        metavar="FILE",
        help="AWS CloudTrail's events, JSON, plain or gzip (again: more)",
    )
    against.add_argument(
        "--hsmd", action="append", metavar="LOG", help="the HSM process's log (again: more)"
    )
    against.add_argument(
        "--store", type=Path, metavar="FILE", help="the output of `ironwork-server db export-ids`"
    )
    parser.add_argument(
        "--from", dest="start", metavar="TIME", help="from this time on (RFC 3339, or a date; UTC)"
    )
    parser.add_argument("--to", dest="end", metavar="TIME", help="before this time")
    parser.add_argument(
        "--skew", type=float, metavar="SECONDS", help="how far the clocks may be apart"
    )
    parser.add_argument(
        "--zone", default="UTC", help="time zone of the times in a spy's log (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="the result as one JSON line")


def run(options: argparse.Namespace) -> int:
    """0 where each has its other, 1 where one is named. Raises Unreadable, BadNote, WrongUsage."""
    try:
        result = _result(options)
    except BadEntry as bad:
        show.line(show.console(), "BAD", "bold red", str(bad))
        return 1
    except (NotARecord, UnknownStep) as error:
        raise Unreadable(str(error)) from None
    if options.json:
        show.as_json(
            {
                "ok": not result.problems,
                "problems": result.problems,
                "entries": result.entries,
                "calls": result.calls,
                "explained": result.explained,
                "ignored": result.ignored,
            }
        )
    else:
        _show(result)
    return 1 if result.problems else 0


def _result(options: argparse.Namespace) -> Result:
    period = Period(milliseconds("--from", options.start), milliseconds("--to", options.end))
    skew_ms = _skew_ms(options)
    if options.store is not None:
        if period != Period():
            raise WrongUsage("--store: takes no period, since a key's life is its whole log")
        lives = Lives()
        _read(options.logs, [lives.take])
        return reconcile_store(lives, read_export(options.store), skew_ms=skew_ms)
    steps = _steps(options.logs)
    period = _bounded(period, options.logs, steps)
    if options.hsmd is not None:
        process = _steps(options.hsmd)
        return reconcile_hsmd(steps, process, skew_ms=skew_ms, period=period)
    recorded, expect, scheme = _record(options, steps)
    # A key that could not be generated has no backend on record.
    ours = [step for step in steps if not step.backend or step.backend.startswith(scheme)]
    return reconcile(ours, recorded, expect, skew_ms=skew_ms, period=period)


def _record(options: argparse.Namespace, steps: Sequence[Step]) -> tuple[Recorded, Expect, str]:
    if options.cloudtrail is not None:
        backends = frozenset(s.backend for s in steps if s.backend.startswith("awskms:"))
        return read_cloudtrail(options.cloudtrail, backends), slots_for_kms, "awskms:"
    records = [read_spy(path, _zone(options.zone)) for path in options.spy]
    joined = Recorded(
        [call for record in records for call in record.calls],
        sum(record.ignored for record in records),
        [problem for record in records for problem in record.problems],
    )
    return joined, slots_for_pkcs11, "pkcs11:"


def _skew_ms(options: argparse.Namespace) -> int:
    if options.skew is not None:
        if not 0 <= options.skew <= 3600:
            raise WrongUsage("--skew: from 0 to 3600 seconds")
        return int(options.skew * 1000)
    given = [skew for name, skew in _SKEW_S.items() if getattr(options, name) is not None]
    return round(given[0] * 1000)


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise WrongUsage("--zone: not a time zone such as Europe/Berlin") from None


def _read(places: Sequence[str], takers: Sequence[Callable[[int, bytes], None]]) -> None:
    """Give every entry of each log to its taker, or to the one that there is."""
    for number, place in enumerate(places):
        take = takers[number if len(takers) > 1 else 0]
        with show.progress_bar("reading") as progress:
            for index, entry in entries_of(place, progress):
                take(index, entry)


def _steps(places: Sequence[str]) -> list[Step]:
    """Of every log. Each must be another: an entry given twice would be missed once."""
    readers = [StepReader() for _ in places]
    _read(places, [reader.take for reader in readers])
    origins = [reader.origin for reader in readers if reader.origin]
    if len(set(origins)) < len(origins):
        raise WrongUsage("LOG: two of them have one origin")
    return [step for reader in readers for step in reader.steps]


def _bounded(period: Period, readers: Sequence[str], steps: Sequence[Step]) -> Period:
    """What was done after the last entry that a published log shows is not missed in it."""
    if not any(map(is_open_ended, readers)):
        return period
    last_ms = max((step.end_ms or step.start_ms for step in steps), default=0)
    end_ms = last_ms if period.end_ms is None else min(period.end_ms, last_ms)
    return Period(period.start_ms, end_ms)


def _show(result: Result) -> None:
    out = show.console()
    for problem in result.problems[:_SHOWN]:
        show.line(out, "BAD", "bold red", problem)
    if len(result.problems) > _SHOWN:
        show.line(out, "BAD", "bold red", f"and {len(result.problems) - _SHOWN:,} more")
    counts = f"{result.entries:,} operations in the log, {result.calls:,} on record elsewhere"
    if result.problems:
        show.line(out, "", "", f"{counts}; {len(result.problems):,} without their other")
    else:
        show.line(out, "OK", "bold green", f"{counts}: each has its other")
    if result.explained:
        text = f"{result.explained:,} belong to operations that failed, were cut off or repeated"
        show.line(out, "note", "yellow", text)
    if result.ignored:
        show.line(out, "", "", f"{result.ignored:,} left out: size queries, and what uses no key")
