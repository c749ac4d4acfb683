"""The process' log: one JSON object a line on standard error, constant events and listed fields.

Other libraries' messages and exceptions' texts are not shown: only where they come from.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

FIELDS: Final = ("address", "count", "device", "pid", "problem", "signal", "state", "uid")
_OURS: Final = "ironwork_hsm"


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        ours = record.name.partition(".")[0] == _OURS
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.msg if ours else f"{record.module}:{record.lineno}",
        }
        if ours:
            given = record.__dict__
            line.update({name: given[name] for name in FIELDS if name in given})
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line)


def configure() -> None:
    """Send every record through it; other handlers go."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger(_OURS).setLevel(logging.INFO)
    logging.raiseExceptions = False
    logging.captureWarnings(capture=True)
