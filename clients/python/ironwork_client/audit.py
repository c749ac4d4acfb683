"""Reads the audit log, for an auditor's profile."""

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from ironwork.keys.v1 import audit_pb2, audit_pb2_grpc
from ironwork_client import errors
from ironwork_client._unary import UnaryClient
from ironwork_client.profile import Profile

T = TypeVar("T")

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


@dataclass(frozen=True, slots=True)
class SignedTree:
    """checkpoint: a C2SP signed note. verifier_key: what the server says checks it; compare it with
    the one that you were given.
    """

    checkpoint: bytes
    verifier_key: str


@dataclass(frozen=True, slots=True)
class Proof:
    """hashes: in RFC 9162's order. size: of the tree that they lead to. checkpoint: the published
    note. Nothing is checked here: `ironwork_audit.tlog` and other C2SP tools do that.
    """

    size: int
    hashes: Sequence[bytes]
    checkpoint: bytes


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
        start_index: int = 0,
    ) -> Iterator[AuditRecord]:
        """Entries by index, oldest first, page by page as they are asked for. Filters combine.

        workspace: `workspaces/{workspace}`; key: its full name; principal: a SPIFFE id; operation:
        such as `AddKey` or `hsm.unwrap`; start (inclusive) and end: aware times; start_index:
        the first index of interest. Raises IronworkError (OutOfRange where the entries from there
        on were moved to the log's archive), and ValueError for a time without a zone.
        """
        request = audit_pb2.ListEntriesRequest(
            page_size=_PAGE,
            workspace=workspace,
            key=key,
            principal=principal,
            operation=operation,
            start_time=_timestamp(start),
            end_time=_timestamp(end),
            start_index=start_index,
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

    def checkpoint(self) -> SignedTree:
        """The newest published checkpoint. Raises IronworkError."""
        answer = self._call(self._stub.GetCheckpoint, audit_pb2.GetCheckpointRequest())
        return SignedTree(answer.checkpoint, answer.verifier_key)

    def inclusion(self, index: int, *, size: int = 0) -> Proof:
        """That entry index is in the tree of size entries; 0: in the checkpoint's. Raises
        IronworkError.
        """
        request = audit_pb2.GetInclusionProofRequest(index=index, size=size)
        answer = self._call(self._stub.GetInclusionProof, request)
        return Proof(answer.size, tuple(answer.hashes), answer.checkpoint)

    def consistency(self, old_size: int, *, size: int = 0) -> Proof:
        """That the tree of size entries (0: the checkpoint's) has grown from that of old_size.
        Raises IronworkError.
        """
        request = audit_pb2.GetConsistencyProofRequest(old_size=old_size, size=size)
        answer = self._call(self._stub.GetConsistencyProof, request)
        return Proof(answer.size, tuple(answer.hashes), answer.checkpoint)

    def follow(
        self,
        start_index: int,
        *,
        workspace: str = "",
        key: str = "",
        principal: str = "",
        operation: str = "",
    ) -> Generator[AuditRecord, None, None]:
        """Entries from an index on, as they are written; filters as in `entries`. Ends when the
        server ends the stream (after an hour, or when it drains): go on after the last index.
        Closing the iterator ends the call. Raises IronworkError.
        """
        request = audit_pb2.FollowEntriesRequest(
            start_index=start_index,
            workspace=workspace,
            key=key,
            principal=principal,
            operation=operation,
        )
        # Without a deadline: it waits for what is not written yet, and the server bounds its age.
        call = self._stub.FollowEntries(request)
        try:
            for message in call:
                for entry in message.entries:
                    yield AuditRecord(entry.origin, entry.index, entry.event)
        except grpc.RpcError as failure:
            raise errors.from_rpc(failure) from None
        finally:
            call.cancel()

    def _call(self, method: Callable[..., T], request: object) -> T:
        try:
            return method(request, timeout=self._deadline)
        except grpc.RpcError as failure:
            raise errors.from_rpc(failure) from None


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    if time.tzinfo is None:
        raise ValueError("a time needs a zone, such as datetime.now(UTC)")
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp
