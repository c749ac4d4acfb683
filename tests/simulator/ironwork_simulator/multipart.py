"""The parts of a `multipart/form-data` body (RFC 7578), bytes untouched."""

import re
from dataclasses import dataclass

from ironwork_simulator.errors import ApiError

_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;]{1,70}))')
_MAX_PARTS = 100
_MAX_PART_HEAD = 8 * 1024


@dataclass(frozen=True, slots=True)
class Part:
    """One part. filename: None where it is a plain field."""

    name: str
    filename: str | None
    content_type: str
    data: bytes


def parse_form(content_type: str, body: bytes | bytearray) -> list[Part]:
    """Read a form; ApiError 400 where it is none, or breaks off."""
    if not content_type.lower().startswith("multipart/form-data"):
        raise ApiError(400, "content-type: must be multipart/form-data")
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise ApiError(400, "content-type: a boundary is required")
    mark = b"--" + (found[1] or found[2]).encode("latin-1")
    position = body.find(mark)
    parts: list[Part] = []
    while position >= 0:
        position += len(mark)
        if body[position : position + 2] == b"--":
            return parts
        end = body.find(b"\r\n" + mark, position)
        if end < 0 or len(parts) >= _MAX_PARTS:
            break
        parts.append(_part(body, position + 2, end))
        position = end + 2
    raise ApiError(400, "the multipart body is not complete")


def _part(body: bytes | bytearray, start: int, end: int) -> Part:
    blank = body.find(b"\r\n\r\n", start, min(end, start + _MAX_PART_HEAD))
    if blank < 0:
        raise ApiError(400, "a part of the multipart body has no header")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (
            line.partition(":")
            for line in bytes(body[start:blank]).decode("utf-8", "replace").split("\r\n")
        )
    }
    disposition = headers.get("content-disposition", "")
    name = _parameter(disposition, "name")
    if name is None:
        raise ApiError(400, "a part of the multipart body has no name")
    return Part(
        name,
        _parameter(disposition, "filename"),
        headers.get("content-type", "text/plain"),
        bytes(body[blank + 4 : end]),
    )


def _parameter(disposition: str, name: str) -> str | None:
    found = re.search(rf'[;\s]{name}="((?:[^"\\]|\\.)*)"', disposition)
    return None if found is None else found[1]
