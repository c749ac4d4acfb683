"""Message batches: created, polled, cancelled, their results as JSON lines.

A batch is in progress when it is created, and has ended at the first look at it after that; one
that is cancelled before has only cancelled results.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ironwork_simulator import sse
from ironwork_simulator.answers import answer
from ironwork_simulator.errors import ApiError
from ironwork_simulator.headers import timestamp
from ironwork_simulator.paging import page_by_id
from ironwork_simulator.request import parse_messages

_MAX_BATCHES = 1_000
_MAX_REQUESTS = 100_000
_DAY_S = 24 * 60 * 60
# Absolute, and Anthropic's own host, whatever this simulator is reached by: so is the real one.
_RESULTS = "https://api.anthropic.com/v1/messages/batches/{}/results"


@dataclass(slots=True)
class _Batch:
    organization_id: str
    identifier: str
    requests: Sequence[tuple[str, Mapping[str, Any]]]
    created_at: str
    expires_at: str
    cancel_initiated_at: str | None = None
    ended_at: str | None = None
    succeeded: int = 0
    errored: int = 0

    def document(self) -> dict[str, Any]:
        """types.messages.MessageBatch."""
        ended, cancelled = self.ended_at is not None, self.cancel_initiated_at is not None
        status = "ended" if ended else "canceling" if cancelled else "in_progress"
        return {
            "id": self.identifier,
            "type": "message_batch",
            "processing_status": status,
            "request_counts": {
                "processing": 0 if ended else len(self.requests),
                "succeeded": self.succeeded,
                "errored": self.errored,
                "canceled": len(self.requests) if ended and cancelled else 0,
                "expired": 0,
            },
            "ended_at": self.ended_at,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "archived_at": None,
            "cancel_initiated_at": self.cancel_initiated_at,
            "results_url": _RESULTS.format(self.identifier) if ended else None,
        }

    def end(self) -> None:
        """Process all requests, which only counts them: results are written when asked for."""
        if self.ended_at is not None:
            return
        self.ended_at = timestamp()
        if self.cancel_initiated_at is None:
            for line in self.results():
                self.succeeded += line["result"]["type"] == "succeeded"
                self.errored += line["result"]["type"] == "errored"

    def results(self) -> Iterator[dict[str, Any]]:
        for number, (custom_id, params) in enumerate(self.requests):
            if self.cancel_initiated_at is not None:
                yield {"custom_id": custom_id, "result": {"type": "canceled"}}
            else:
                identifier = f"msg_01{self.identifier[-16:]}{number:06d}"
                yield {"custom_id": custom_id, "result": _result(params, identifier)}


def _result(params: Mapping[str, Any], identifier: str) -> dict[str, Any]:
    try:
        request = parse_messages(json.dumps(params).encode())
    except ApiError as error:
        return {"type": "errored", "error": error.document(None)}
    return {"type": "succeeded", "message": sse.message(identifier, request, answer(request))}


class BatchStore:
    """The batches of all organisations; the oldest go where there are too many."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._batches: OrderedDict[str, _Batch] = OrderedDict()
        self._count = 0

    def add(self, organization_id: str, body: bytes | bytearray) -> dict[str, Any]:
        """A new batch; ApiError 400 where the body is none."""
        requests = list(_requests(body))
        with self._lock:
            self._count += 1
            identifier = f"msgbatch_01{self._count:022d}"
            batch = _Batch(
                organization_id, identifier, requests, timestamp(), timestamp(later_s=_DAY_S)
            )
            self._batches[identifier] = batch
            while len(self._batches) > _MAX_BATCHES:
                self._batches.popitem(last=False)
        return batch.document()

    def page(self, organization_id: str, query: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        with self._lock:
            batches = list(reversed(self._batches.values()))
        own = [b.document() for b in batches if b.organization_id == organization_id]
        return page_by_id(own, query)

    def get(self, organization_id: str, identifier: str) -> dict[str, Any]:
        """The batch as it is now: it has ended."""
        return self._change(organization_id, identifier, _Batch.end)

    def cancel(self, organization_id: str, identifier: str) -> dict[str, Any]:
        def cancel(batch: _Batch) -> None:
            if batch.ended_at is None and batch.cancel_initiated_at is None:
                batch.cancel_initiated_at = timestamp()

        return self._change(organization_id, identifier, cancel)

    def delete(self, organization_id: str, identifier: str) -> dict[str, Any]:
        with self._lock:
            if self._find(organization_id, identifier).ended_at is None:
                raise ApiError(400, "The batch is still processing; cancel it first")
            del self._batches[identifier]
        return {"type": "message_batch_deleted", "id": identifier}

    def results(self, organization_id: str, identifier: str) -> Iterator[bytes]:
        """The results, a line each; ApiError 404 until the batch has ended."""
        with self._lock:
            batch = self._find(organization_id, identifier)
        if batch.ended_at is None:
            raise ApiError(404, "Batch has not ended yet: it has no results")
        return (sse.dump(line) + b"\n" for line in batch.results())

    def clear(self) -> None:
        with self._lock:
            self._batches.clear()

    def _change(
        self, organization_id: str, identifier: str, change: Callable[[_Batch], None]
    ) -> dict[str, Any]:
        with self._lock:
            batch = self._find(organization_id, identifier)
            change(batch)
            return batch.document()

    def _find(self, organization_id: str, identifier: str) -> _Batch:
        batch = self._batches.get(identifier)
        if batch is None or batch.organization_id != organization_id:
            raise ApiError(404, f"Batch not found: {identifier[:100]}")
        return batch


def _requests(body: bytes | bytearray) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The request body is not valid JSON") from None
    requests = document.get("requests") if isinstance(document, dict) else None
    if not isinstance(requests, list) or not 1 <= len(requests) <= _MAX_REQUESTS:
        raise ApiError(400, f"requests: a list of 1 to {_MAX_REQUESTS} requests is required")
    seen: set[str] = set()
    for index, request in enumerate(requests):
        custom_id = request.get("custom_id") if isinstance(request, dict) else None
        params = request.get("params") if isinstance(request, dict) else None
        if not isinstance(custom_id, str) or not isinstance(params, dict):
            raise ApiError(400, f"requests.{index}: custom_id and params are required")
        if custom_id in seen:
            raise ApiError(400, f"requests.{index}.custom_id: must be unique in the batch")
        seen.add(custom_id)
        yield custom_id, params
