"""Structured logs, one JSON object a line on standard error, by allow list.

A record shows its event (a constant string of ours), its level, logger and place, and the fields
named here. Never a formatted message of another library, never an exception's text: either may
quote a header or a body. What was raised shows as its type and where.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType

OURS = "ironwork_server"
FIELDS = (
    "address",
    "component",
    "count",
    "healthy",
    "path",
    "problem",
    "reason",
    "signal",
    "version",
    "window_s",
)
MAX_FRAMES = 20


class JsonFormatter(logging.Formatter):
    """See the module's text."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        ours = record.name.partition(".")[0] == OURS
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            # Another library's message may be a finished sentence with anything in it.
            "event": record.msg if ours else f"{record.module}:{record.lineno}",
        }
        if ours:
            line.update({name: record.__dict__[name] for name in FIELDS if name in record.__dict__})
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = f"{record.exc_info[0].__module__}.{record.exc_info[0].__qualname__}"
            line["at"] = _frames(record.exc_info[2])
        return json.dumps(line, default=str)


def _frames(trace: TracebackType | None) -> list[str]:
    frames = traceback.extract_tb(trace, limit=-MAX_FRAMES) if trace is not None else []
    return [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]


def _short(filename: str) -> str:
    return "/".join(filename.rsplit("/", 2)[-2:])


def configure(level: str) -> None:
    """Send every record through JsonFormatter; the root logger's other handlers go."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    # Other libraries' records say little here; only at debug are they worth their lines.
    others = "DEBUG" if level == "debug" else "WARNING"
    logging.basicConfig(handlers=[handler], level=others, force=True)
    logging.getLogger(OURS).setLevel(level.upper())
    logging.raiseExceptions = False
