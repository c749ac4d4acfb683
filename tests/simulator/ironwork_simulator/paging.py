"""Lists as Anthropic pages them: by the ids at a page's ends (models, batches) or by a cursor."""

from collections.abc import Mapping, Sequence
from typing import Any

from ironwork_simulator.errors import ApiError

Item = Mapping[str, Any]
Query = Mapping[str, Sequence[str]]


def page_by_id(items: Sequence[Item], query: Query) -> dict[str, Any]:
    """limit (1–1000, 20), after_id, before_id; `data`, `has_more`, `first_id`, `last_id`."""
    limit = _limit(query)
    after, before = query.get("after_id"), query.get("before_id")
    if after and before:
        raise ApiError(400, "before_id and after_id: only one of them may be given")
    if after:
        rest = items[_position(items, after[0], "after_id") + 1 :]
        page, more = rest[:limit], len(rest) > limit
    elif before:
        rest = items[: _position(items, before[0], "before_id")]
        page, more = rest[-limit:], len(rest) > limit
    else:
        page, more = items[:limit], len(items) > limit
    return {
        "data": page,
        "has_more": more,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }


def page_by_cursor(items: Sequence[Item], query: Query) -> dict[str, Any]:
    """limit (1–1000, 20), page; `data`, `next_page`."""
    limit = _limit(query)
    cursor = query.get("page", [None])[0]
    start = 0
    if cursor is not None:
        start = _position(items, cursor.removeprefix("page_"), "page") + 1
    page = items[start : start + limit]
    more = len(items) > start + limit
    return {"data": page, "next_page": f"page_{page[-1]['id']}" if more else None}


def _limit(query: Query) -> int:
    text = query.get("limit", ["20"])[0]
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= 1000):
        raise ApiError(400, "limit: Input should be between 1 and 1000")
    return int(text)


def _position(items: Sequence[Item], identifier: str, field: str) -> int:
    for position, item in enumerate(items):
        if item["id"] == identifier:
            return position
    raise ApiError(400, f"{field}: not the ID of an object in this list")
