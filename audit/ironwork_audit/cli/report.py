"""`ironwork-audit report`."""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from ironwork_audit.cli import options as shared
from ironwork_audit.cli import show
from ironwork_audit.cli.selection import milliseconds
from ironwork_audit.reconcile.logs import entries_of
from ironwork_audit.report.make import gather
from ironwork_audit.report.page import Standing, render_page
from ironwork_audit.report.usage import DAY_MS
from ironwork_audit.select import BadEntry, unchecked_origin
from ironwork_audit.source import open_source
from ironwork_audit.tlog.note import VerifierKey
from ironwork_audit.verify import Verdict, verify

HELP: Final = "write a readable page about a period: who used which key, what stands out"
_DAYS: Final = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("logs", metavar="LOG", nargs="+", help="each log's folder, or its URL")
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), help="the page's file (%(default)s)"
    )
    parser.add_argument(
        "--from",
        dest="start",
        metavar="TIME",
        help="from this time on (RFC 3339, or a date; UTC); 30 days before the end",
    )
    parser.add_argument("--to", dest="end", metavar="TIME", help="before this time; now")
    parser.add_argument(
        "--key",
        action="append",
        default=[],
        help="a log's verifier key, or a file that holds it: the log is verified (again: more)",
    )
    shared.add_witness_keys(parser)
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)"
    )


def run(options: argparse.Namespace) -> int:
    """0 where the page is written and no log is bad, 1 where one is. Raises Unreadable, BadNote,
    WrongUsage, OSError.
    """
    now_ms = time.time_ns() // 1_000_000
    end_ms = milliseconds("--to", options.end) or now_ms
    start_ms = milliseconds("--from", options.start)
    if start_ms is None:
        start_ms = max(end_ms - _DAYS * DAY_MS, 0)
    if not start_ms < end_ms:
        raise shared.WrongUsage("--from: must be before --to")
    standings = _standings(options)
    try:
        with show.progress_bar("reading") as progress:
            logs = [entries_of(place, progress) for place in options.logs]
            usage, unusual = gather(logs, start_ms, end_ms)
    except BadEntry as bad:
        show.line(show.console(), "BAD", "bold red", str(bad))
        return 1
    page = render_page(usage, unusual, standings, start_ms=start_ms, end_ms=end_ms, made_ms=now_ms)
    _write(options.out, page)
    bad_ones = [standing for standing in standings if standing.state == "bad"]
    for standing in bad_ones:
        show.line(show.console(), "BAD", "bold red", f"{standing.origin}: {standing.text}")
    show.line(show.console(), "OK", "bold green", f"{usage.entries:,} entries in {options.out}")
    return 1 if bad_ones else 0


def _standings(options: argparse.Namespace) -> list[Standing]:
    keys = {key.name: key for key in map(shared.key_from, options.key)}
    witnesses = shared.witness_keys_of(options)
    found = [_standing(place, keys, witnesses, options.workers) for place in options.logs]
    unused = keys.keys() - {standing.origin for standing in found}
    if unused:
        raise shared.WrongUsage(f"--key: no LOG is of the origin {min(unused)}")
    return found


def _standing(
    place: str, keys: dict[str, VerifierKey], witnesses: Sequence[VerifierKey], workers: int
) -> Standing:
    with closing(open_source(place)) as source, show.progress_bar("verifying") as progress:
        origin = unchecked_origin(source)
        key = keys.get(origin)
        if key is None:
            text = "No verifier key was given (--key): nothing says that this log is unchanged."
            return Standing(origin, "unknown", text)
        verdict = verify(source, key, witnesses=witnesses, workers=workers, progress=progress)
    return _judged(origin, verdict)


def _judged(origin: str, verdict: Verdict) -> Standing:
    finding, checkpoint = verdict.finding, verdict.checkpoint
    if finding is not None or checkpoint is None:
        what = "no checkpoint" if finding is None else finding.what
        at = "" if finding is None or finding.index is None else f"entry {finding.index}: "
        return Standing(origin, "bad", f"{at}{what}")
    text = f"{checkpoint.size:,} entries, root {checkpoint.root.hex()}"
    if verdict.unsigned:
        text += f"; {verdict.unsigned:,} after it are not yet signed"
    witness = ", ".join(
        f"{item.name} at {show.shown_time(item.timestamp * 1000)}" for item in verdict.cosignatures
    )
    return Standing(origin, "verified", text, witness)


def _write(path: Path, page: str) -> None:
    """Whole or not at all, readable by its owner alone: names and habits are in it."""
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
