"""Reads the audit log, for an auditor's profile."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from ironwork.keys.v1 import audit_pb2, audit_pb2_grpc
from ironwork_client import errors
from ironwork_client._unary import UnaryClient
from ironwork_client.profile import Profile

DEFAULT_DEADLINE_S: Final = 30.0
_PAGE: Final = 200
# An entry is at most 64 KiB (the log's own bound), so a page always fits.
_MAX_RECEIVE_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One entry of the log. event: the exact bytes of an OCSF 1.6.0 event."""

    origin: str
    index: int
    event: bytes

    def parsed(self) -> dict[str, object]:
        """The event's fields. Raises ValueError where it is no JSON object."""
        value = json.loads(self.event)
        if not isinstance(value, dict):
            raise ValueError("the event is no JSON object")  # noqa: TRY004 - as json's own error
        return value


class AuditClient(UnaryClient):
    """The log of every API and HSM operation. A context manager; safe for threads."""

    def __init__(self, profile: Profile, *, deadline: float = DEFAULT_DEADLINE_S) -> None:
        """deadline: seconds for each page. Raises ProfileError."""
        super().__init__(profile, deadline=deadline, max_receive_bytes=_MAX_RECEIVE_BYTES)
        self._stub = audit_pb2_grpc.AuditServiceStub(self._channel)

    def entries(
        self,
        *,
        workspace: str = "",
        key: str = "",
        principal: str = "",
        operation: str = "",
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> Iterator[AuditRecord]:
        """Entries by index, oldest first, page by page as they are asked for. Filters combine.

        workspace: `workspaces/{workspace}`; key: its full name; principal: a SPIFFE id; operation:
        such as `AddKey` or `hsm.unwrap`; start (inclusive) and end: aware times. Raises
        IronworkError, and ValueError for a time without a zone.
        """
        request = audit_pb2.ListEntriesRequest(
            page_size=_PAGE,
            workspace=workspace,
            key=key,
            principal=principal,
            operation=operation,
            start_time=_timestamp(start),
            end_time=_timestamp(end),
        )
        while True:
            try:
                page = self._stub.ListEntries(request, timeout=self._deadline)
            except grpc.RpcError as failure:
                raise errors.from_rpc(failure) from None
            for entry in page.entries:
                yield AuditRecord(entry.origin, entry.index, entry.event)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    if time.tzinfo is None:
        raise ValueError("a time needs a zone, such as datetime.now(UTC)")
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp
