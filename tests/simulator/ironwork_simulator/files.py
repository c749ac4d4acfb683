"""Files: uploaded as a form, listed, described, downloaded byte for byte, deleted."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ironwork_simulator.errors import ApiError
from ironwork_simulator.headers import timestamp
from ironwork_simulator.multipart import parse_form
from ironwork_simulator.paging import page_by_cursor

_MAX_FILES = 1_000
_MAX_BYTES = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _File:
    organization_id: str
    metadata: Mapping[str, Any]
    data: bytes


class FileStore:
    """The files of all organisations, newest first; the oldest go where there are too many."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._count = 0

    def add(self, organization_id: str, content_type: str, body: bytes | bytearray) -> Any:
        """The metadata of a new file; ApiError 400 where the form holds none."""
        file = next((p for p in parse_form(content_type, body) if p.name == "file"), None)
        if file is None or file.filename is None:
            raise ApiError(400, "file: Field required")
        with self._lock:
            self._count += 1
            metadata = {
                "type": "file",
                "id": f"file_011C{self._count:020d}",
                "filename": file.filename,
                "mime_type": file.content_type,
                "size_bytes": len(file.data),
                "created_at": timestamp(),
                "downloadable": True,
                "scope": None,
            }
            self._files[str(metadata["id"])] = _File(organization_id, metadata, file.data)
            self._bound()
        return metadata

    def page(self, organization_id: str, query: Mapping[str, Sequence[str]]) -> Any:
        with self._lock:
            files = list(reversed(self._files.values()))
        wanted = {*query.get("ids", ()), *query.get("ids[]", ())}
        own = [f.metadata for f in files if f.organization_id == organization_id]
        if wanted:
            return {"data": [f for f in own if f["id"] in wanted], "next_page": None}
        return page_by_cursor(own, query)

    def metadata(self, organization_id: str, identifier: str) -> Mapping[str, Any]:
        return self._find(organization_id, identifier).metadata

    def content(self, organization_id: str, identifier: str) -> tuple[str, bytes]:
        """The media type and the bytes."""
        file = self._find(organization_id, identifier)
        return str(file.metadata["mime_type"]), file.data

    def delete(self, organization_id: str, identifier: str) -> Any:
        self._find(organization_id, identifier)
        with self._lock:
            self._files.pop(identifier, None)
        return {"type": "file_deleted", "id": identifier}

    def clear(self) -> None:
        with self._lock:
            self._files.clear()

    def _find(self, organization_id: str, identifier: str) -> _File:
        with self._lock:
            file = self._files.get(identifier)
        if file is None or file.organization_id != organization_id:
            raise ApiError(404, f"File not found: {identifier[:100]}")
        return file

    def _bound(self) -> None:
        size = sum(len(file.data) for file in self._files.values())
        while len(self._files) > 1 and (len(self._files) > _MAX_FILES or size > _MAX_BYTES):
            size -= len(self._files.popitem(last=False)[1].data)
