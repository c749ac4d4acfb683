"""What the commands print: tables for people, JSON for programs. Allow lists: a field is shown
because it is named here.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ironwork_client.audit import AuditRecord
from ironwork_client.errors import IronworkError
from ironwork_client.keys import DeletedKey, KeyState, MaskedKey

# A file or a pipe has no width: wide enough that nothing is folded.
_PIPE_WIDTH: Final = 220
# What a key's line takes, with the ids of 36 characters each and a name of some length.
_WIDE: Final = 175
_MASK_WIDTH: Final = 15
_STATES: Final = {
    KeyState.ACTIVE: ("active", "green"),
    KeyState.REJECTED_BY_ANTHROPIC: ("rejected by Anthropic", "bold red"),
    KeyState.UNKNOWN: ("unknown", "yellow"),
}


def console(*, stderr: bool = False) -> Console:
    """A console for stdout or stderr, as they are now."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def safe(value: str, style: str = "") -> Text:
    """Text from elsewhere: control characters must not reach the terminal."""
    return Text(
        "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value), style
    )


def print_keys(keys: Iterable[MaskedKey], *, stderr: bool = False) -> None:
    """The keys as a table that fits."""
    to = console(stderr=stderr)
    to.print(keys_table(keys, to.width))


def print_json(value: object) -> None:
    """One line, so that it can be piped."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def print_lines(text: str) -> None:
    """As it is, but for control characters, which could play tricks on a terminal."""
    sys.stdout.write("".join(each for each in text if each == "\n" or each.isprintable()))


def key_fields(key: MaskedKey) -> dict[str, object]:
    """A key for programs; times are RFC 3339, UTC."""
    version = key.master_key_version
    return {
        "name": key.name,
        "key_id": key.key_id,
        "display_name": key.display_name,
        "mask": key.mask,
        "state": key.state.value,
        "current": key.current,
        "organization_id": key.organization_id,
        "created_at": _rfc3339(key.created_at),
        "created_by": key.created_by,
        "last_used_at": _rfc3339(key.last_used_at),
        "last_validated_at": _rfc3339(key.last_validated_at),
        "master_key_version": (
            {"backend": version.backend, "version": version.version} if version else None
        ),
    }


def deleted_fields(deleted: DeletedKey) -> dict[str, object]:
    current = deleted.current
    return {
        "current": key_fields(current) if current else None,
        "cancelled_requests": deleted.cancelled_requests,
    }


def error_fields(error: IronworkError) -> dict[str, object]:
    return {
        "error": {
            "code": error.code.name,
            "reason": error.reason,
            "message": error.message,
            "metadata": error.metadata,
            "violations": [
                {"field": v.field, "description": v.description} for v in error.violations
            ],
            "retry_after_s": error.retry_after,
        }
    }


def keys_table(keys: Iterable[MaskedKey], width: int) -> Table:
    """The keys; ● marks the one that the next Claude request uses. A line for each where width
    allows (a pipe always does), else two, so that ids stay whole and can be copied.
    """
    return _wide_table(keys) if width >= _WIDE else _stacked_table(keys)


def _wide_table(keys: Iterable[MaskedKey]) -> Table:
    table = _table("", "key", "name", "state", "organisation", "created", "last used", "id")
    for key in keys:
        table.add_row(
            _mark(key),
            _mask(key),
            safe(key.display_name or "–"),
            _state(key),
            safe(key.organization_id or "–"),
            Text(shown(key.created_at)),
            Text(shown(key.last_used_at, never="never")),
            safe(key.key_id),
        )
    return table


def _stacked_table(keys: Iterable[MaskedKey]) -> Table:
    table = _table("", "key\nstate", "name", "created\nlast used", "id\norganisation")
    for column in table.columns[1:3]:
        column.no_wrap = False
    table.columns[1].min_width = _MASK_WIDTH
    table.padding = (0, 1, 0, 0)
    for key in keys:
        table.add_row(
            _mark(key),
            Text("\n").join((_mask(key), _state(key))),
            safe(key.display_name or "–"),
            Text(f"{shown(key.created_at)}\n{shown(key.last_used_at, never='never')}"),
            Text("\n").join((safe(key.key_id), safe(key.organization_id or "–", "dim"))),
        )
    return table


def _table(*titles: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=True, overflow="fold")
    return table


def _mark(key: MaskedKey) -> Text:
    return Text("●" if key.current else "", "green")


def _mask(key: MaskedKey) -> Text:
    return safe(key.mask, "bold" if key.current else "")


def _state(key: MaskedKey) -> Text:
    return Text(*_STATES[key.state])


def audit_table() -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("index", justify="right", no_wrap=True)
    table.add_column("time (UTC)", no_wrap=True)
    table.add_column("operation", no_wrap=True)
    table.add_column("phase", no_wrap=True)
    table.add_column("result", no_wrap=True)
    for title in ("who", "workspace", "key"):
        table.add_column(title, overflow="fold")
    return table


def audit_row(record: AuditRecord) -> list[Text]:
    """An entry's line; what the event does not hold stays empty."""
    try:
        event = record.parsed()
    except ValueError:
        return [Text(str(record.index)), Text(""), Text("(not readable as JSON)", "red")]
    status = _text(event, "status")
    resources = {
        _text(resource, "type"): _text(resource, "uid")
        for resource in _items(event.get("resources"))
    }
    return [
        Text(str(record.index)),
        Text(_event_time(event.get("time"))),
        safe(_text(event, "metadata", "event_code") or _text(event, "api", "operation")),
        safe(_text(event, "unmapped", "phase")),
        safe(status, {"Success": "green", "Failure": "red"}.get(status, "")),
        safe(
            _text(event, "actor", "user", "uid")
            or _text(event, "user", "uid")
            or _text(event, "actor", "app_name")
        ),
        safe(_text(event, "metadata", "tenant_uid") or resources.get("workspace", "")),
        safe(resources.get("key", "") or _text(event, "unmapped", "key_id")),
    ]


def shown(time: datetime | None, *, never: str = "–") -> str:
    """A time for people, to the minute, UTC."""
    return never if time is None else time.astimezone(UTC).strftime("%Y-%m-%d %H:%MZ")


def _rfc3339(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _event_time(milliseconds: object) -> str:
    if not isinstance(milliseconds, int):
        return ""
    try:
        time = datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _text(value: object, *path: str) -> str:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else ""


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []
