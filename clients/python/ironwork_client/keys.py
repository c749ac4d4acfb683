"""A typed client for the key RPCs. No call is repeated: the caller decides, by class and reason.

After Unavailable (retry_after says when) or DeadlineExceeded, `add` can be repeated safely with
the same request_id: the service then gives the first answer and does nothing twice.
"""

import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from types import TracebackType
from typing import Final, Self

import grpc
import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc
from ironwork_client import errors
from ironwork_client._channel import channel_options
from ironwork_client._syntax import check_key
from ironwork_client._unary import UnaryClient
from ironwork_client.profile import Profile

DEFAULT_DEADLINE_S: Final = 30.0
_MAX_RECEIVE_BYTES: Final = 4 << 20
_PAGE: Final = 100


class KeyState(Enum):
    """What is known of a key's standing with Anthropic."""

    UNKNOWN = "UNKNOWN"
    ACTIVE = "ACTIVE"
    REJECTED_BY_ANTHROPIC = "REJECTED_BY_ANTHROPIC"


@dataclass(frozen=True, slots=True)
class MasterKeyVersion:
    """The master key that wraps a key's data key."""

    backend: str
    version: int


@dataclass(frozen=True, slots=True)
class MaskedKey:
    """A key as anybody may see it. Times are UTC; None where they are not set."""

    name: str
    display_name: str
    mask: str
    state: KeyState
    current: bool
    organization_id: str
    created_at: datetime | None
    created_by: str
    last_used_at: datetime | None
    last_validated_at: datetime | None
    master_key_version: MasterKeyVersion | None

    @property
    def key_id(self) -> str:
        """The last part of the name, a UUID."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class DeletedKey:
    """What is so after a deletion: the key that is current now, and how many responses in flight
    were ended.
    """

    current: MaskedKey | None
    cancelled_requests: int


class KeyClient(UnaryClient):
    """The workspace's keys, for a key-admin's profile. A context manager; safe for threads.

    Every method raises an IronworkError, and ProfileError where the profile names no workspace.
    """

    def __init__(self, profile: Profile, *, deadline: float = DEFAULT_DEADLINE_S) -> None:
        """deadline: seconds for each call. Raises ProfileError."""
        self._parent = profile.parent
        super().__init__(profile, deadline=deadline, max_receive_bytes=_MAX_RECEIVE_BYTES)
        self._stub = keys_pb2_grpc.KeyServiceStub(self._channel)

    def add(
        self,
        key: str | bytes,
        display_name: str = "",
        request_id: str | None = None,
        allow_different_organization: bool = False,
    ) -> MaskedKey:
        """Have the key checked with Anthropic and kept; it is current when this returns.

        request_id: a UUID4; a new one if None. A key that cannot be one is refused before it is
        sent.
        """
        request = _add_request(
            self._parent, key, display_name, request_id, allow_different_organization
        )
        try:
            answer = self._stub.AddKey(request, timeout=self._deadline)
        except grpc.RpcError as failure:
            raise errors.from_rpc(failure) from None
        return _masked(answer.key)

    def list(self) -> Iterator[MaskedKey]:
        """The workspace's keys, newest first, page by page as they are asked for."""
        request = keys_pb2.ListMaskedRequest(parent=self._parent, page_size=_PAGE)
        while True:
            try:
                page = self._stub.ListMasked(request, timeout=self._deadline)
            except grpc.RpcError as failure:
                raise errors.from_rpc(failure) from None
            yield from map(_masked, page.keys)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def delete(self, name_or_id: str, cancel_in_flight: bool = False) -> DeletedKey:
        """Destroy a key: when this returns, no Claude request starts with it.

        name_or_id: the full name, or the key's id in the profile's workspace. cancel_in_flight:
        end responses that are being streamed with it, too.
        """
        request = _delete_request(self._parent, name_or_id, cancel_in_flight)
        try:
            answer = self._stub.DeleteKey(request, timeout=self._deadline)
        except grpc.RpcError as failure:
            raise errors.from_rpc(failure) from None
        return _deleted(answer)


class AsyncKeyClient:
    """As KeyClient, for asyncio: an async context manager. Made and used in one event loop."""

    def __init__(self, profile: Profile, *, deadline: float = DEFAULT_DEADLINE_S) -> None:
        """deadline: seconds for each call. Raises ProfileError."""
        self._parent = profile.parent
        self._deadline = deadline
        self._channel = grpc.aio.secure_channel(
            profile.target,
            profile.credentials(),
            options=channel_options(profile, max_receive_bytes=_MAX_RECEIVE_BYTES),
        )
        self._stub = keys_pb2_grpc.KeyServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def add(
        self,
        key: str | bytes,
        display_name: str = "",
        request_id: str | None = None,
        allow_different_organization: bool = False,
    ) -> MaskedKey:
        """As KeyClient.add."""
        request = _add_request(
            self._parent, key, display_name, request_id, allow_different_organization
        )
        try:
            answer = await self._stub.AddKey(request, timeout=self._deadline)
        except grpc.aio.AioRpcError as failure:
            raise errors.from_rpc(failure) from None
        return _masked(answer.key)

    async def list(self) -> AsyncIterator[MaskedKey]:
        """As KeyClient.list."""
        request = keys_pb2.ListMaskedRequest(parent=self._parent, page_size=_PAGE)
        while True:
            try:
                page = await self._stub.ListMasked(request, timeout=self._deadline)
            except grpc.aio.AioRpcError as failure:
                raise errors.from_rpc(failure) from None
            for key in page.keys:
                yield _masked(key)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def delete(self, name_or_id: str, cancel_in_flight: bool = False) -> DeletedKey:
        """As KeyClient.delete."""
        request = _delete_request(self._parent, name_or_id, cancel_in_flight)
        try:
            answer = await self._stub.DeleteKey(request, timeout=self._deadline)
        except grpc.aio.AioRpcError as failure:
            raise errors.from_rpc(failure) from None
        return _deleted(answer)

    async def close(self) -> None:
        await self._channel.close()


def _add_request(
    parent: str,
    key: str | bytes,
    display_name: str,
    request_id: str | None,
    allow_different_organization: bool,
) -> keys_pb2.AddKeyRequest:
    raw = key.encode("utf-8", "replace") if isinstance(key, str) else key
    check_key(raw)
    return keys_pb2.AddKeyRequest(
        parent=parent,
        api_key=raw,
        display_name=display_name,
        request_id=str(uuid.uuid4()) if request_id is None else request_id,
        allow_different_organization=allow_different_organization,
    )


def _delete_request(
    parent: str, name_or_id: str, cancel_in_flight: bool
) -> keys_pb2.DeleteKeyRequest:
    name = name_or_id if "/" in name_or_id else f"{parent}/keys/{name_or_id}"
    return keys_pb2.DeleteKeyRequest(
        name=name, cancel_in_flight=cancel_in_flight, request_id=str(uuid.uuid4())
    )


def _deleted(answer: keys_pb2.DeleteKeyResponse) -> DeletedKey:
    current = _masked(answer.current) if answer.HasField("current") else None
    return DeletedKey(current, answer.cancelled_requests)


_STATES: Final = {
    keys_pb2.KEY_STATE_ACTIVE: KeyState.ACTIVE,
    keys_pb2.KEY_STATE_REJECTED_BY_ANTHROPIC: KeyState.REJECTED_BY_ANTHROPIC,
}


def _masked(key: keys_pb2.MaskedKey) -> MaskedKey:
    def time(field: str, value: Timestamp) -> datetime | None:
        return value.ToDatetime(UTC) if key.HasField(field) else None  # type: ignore[arg-type]

    version = key.master_key_version
    return MaskedKey(
        name=key.name,
        display_name=key.display_name,
        mask=key.mask,
        state=_STATES.get(key.state, KeyState.UNKNOWN),
        current=key.current,
        organization_id=key.organization_id,
        created_at=time("create_time", key.create_time),
        created_by=key.created_by,
        last_used_at=time("last_use_time", key.last_use_time),
        last_validated_at=time("last_validate_time", key.last_validate_time),
        master_key_version=(
            MasterKeyVersion(version.backend, version.version)
            if key.HasField("master_key_version")
            else None
        ),
    )
