"""Structured logs, one JSON object a line on standard error, by allow list.

A record shows its event (a constant string of ours), its level, logger and place, and the fields
named here. Never a formatted message of another library, never an exception's text: either may
quote a header or a body. What was raised shows as its type and where. Warnings, and errors that
end a thread or come from a destructor, take the same way.
"""

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

from ironwork_server.core.described import described
from ironwork_server.upstream.quiet import silence_http_loggers

log = logging.getLogger(__name__)

OURS = "ironwork_server"
FIELDS = (
    "address",
    "at",
    "backend",
    "component",
    "count",
    "error",
    "healthy",
    "mechanism",
    "next_mechanism",
    "path",
    "problem",
    "reason",
    "signal",
    "version",
    "window_s",
)
# Its DEBUG output holds rows: ciphertexts and fingerprints.
DATABASE_LOGGER = "sqlalchemy"


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
            fields = record.__dict__
            line.update({name: _shown(fields[name]) for name in FIELDS if name in fields})
        if record.exc_info and record.exc_info[1] is not None:
            line.update(described(record.exc_info[1]))
        return json.dumps(line)


def _shown(value: object) -> object:
    """A plain value; of anything else, which could show what it holds, the kind."""
    if isinstance(value, str | int | float) or value is None:
        return value
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return str(value) if isinstance(value, Path) else f"<{type(value).__name__}>"


def configure(level: str) -> None:
    """Send every record through JsonFormatter; the root logger's other handlers go. Libraries that
    would log headers, bodies or rows make no records at all.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    # Other libraries' records say little here; only at debug are they worth their lines.
    others = "DEBUG" if level == "debug" else "WARNING"
    logging.basicConfig(handlers=[handler], level=others, force=True)
    logging.getLogger(OURS).setLevel(level.upper())
    silence_http_loggers()
    logging.getLogger(DATABASE_LOGGER).setLevel(logging.WARNING)
    logging.raiseExceptions = False
    logging.captureWarnings(capture=True)
    threading.excepthook = _thread_ended
    sys.unraisablehook = _unraisable


def _thread_ended(args: threading.ExceptHookArgs) -> None:
    log.error("thread.ended", extra=_described(args.exc_value))


def _unraisable(args: "sys.UnraisableHookArgs") -> None:
    log.error("error.unraisable", extra=_described(args.exc_value))


def _described(error: BaseException | None) -> dict[str, object]:
    return {} if error is None else described(error)
