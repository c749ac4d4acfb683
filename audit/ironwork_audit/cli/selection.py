"""The arguments that choose entries."""

import argparse
from datetime import UTC, datetime, timedelta
from typing import Final

from ironwork_audit.cli.options import WrongUsage
from ironwork_audit.select import Selection

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def add_selection(parser: argparse.ArgumentParser) -> None:
    """--workspace, --key-id, --principal, --operation, --from, --to."""
    parser.add_argument("--workspace", default="", help="only this workspace")
    parser.add_argument("--key-id", default="", help="only this stored key")
    parser.add_argument("--principal", default="", help="only this SPIFFE id")
    parser.add_argument("--operation", default="", help="only this operation, such as WithKey")
    parser.add_argument(
        "--from", dest="start", metavar="TIME", help="from this time on (RFC 3339, or a date; UTC)"
    )
    parser.add_argument("--to", dest="end", metavar="TIME", help="before this time")


def selection_of(options: argparse.Namespace) -> Selection:
    """What was asked for. Raises WrongUsage."""
    return Selection(
        workspace=options.workspace.removeprefix("workspaces/"),
        key_id=options.key_id,
        principal=options.principal,
        operation=options.operation,
        start_ms=milliseconds("--from", options.start),
        end_ms=milliseconds("--to", options.end),
    )


def milliseconds(name: str, text: str | None) -> int | None:
    """A time as RFC 3339 or a date, in milliseconds since 1970. Raises WrongUsage, by `name`."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise WrongUsage(f"{name}: not a time such as 2026-11-23T12:00:00Z, or a date") from None
    aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(milliseconds=1)
