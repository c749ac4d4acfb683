"""AuditService: the log of every API and HSM operation, for auditors."""

import asyncio
from datetime import UTC, datetime
from typing import Literal

from ironwork.keys.v1 import audit_pb2, audit_pb2_grpc
from ironwork_server.core.errors import Cancelled, InvalidRequest
from ironwork_server.core.names import parse_key_name, parse_workspace
from ironwork_server.core.values import Resource
from ironwork_server.custody.gate import Permit
from ironwork_server.custody.read_audit import AuditFollower, AuditLister, AuditProver
from ironwork_server.journal import EntryFilter
from ironwork_server.rpc import table
from ironwork_server.rpc.chain import Chain
from ironwork_server.rpc.context import Context

FOLLOW_AGE_S = 3600.0
# A follower that does not take what is written is let go.
WRITE_DEADLINE_S = 30.0
MAX_INDEX = 2**63 - 1


class AuditService(audit_pb2_grpc.AuditServiceServicer):
    """See audit.proto for every method's contract."""

    def __init__(
        self,
        *,
        chain: Chain,
        lister: AuditLister,
        prover: AuditProver,
        follower: AuditFollower,
        verifier_key: str,
        draining: asyncio.Event,
    ) -> None:
        """verifier_key: of the log's checkpoints. draining: set when the server shuts down."""
        self._chain = chain
        self._lister = lister
        self._prover = prover
        self._follower = follower
        self._verifier_key = verifier_key
        self._draining = draining

    async def ListEntries(  # noqa: N802  the proto's name
        self, request: audit_pb2.ListEntriesRequest, context: Context
    ) -> audit_pb2.ListEntriesResponse:
        """List entries, oldest first."""

        async def act(permit: Permit) -> audit_pb2.ListEntriesResponse:
            page = await self._lister.list(
                permit,
                _filter(request),
                size=request.page_size,
                token=request.page_token,
                start=_start_index(request),
            )
            return audit_pb2.ListEntriesResponse(
                entries=[
                    audit_pb2.AuditEntry(origin=page.origin, index=index, event=event)
                    for index, event in page.entries
                ],
                next_page_token=page.next_page_token,
            )

        return await self._chain.unary(table.LIST_ENTRIES, context, _the_log, act)

    async def GetCheckpoint(  # noqa: N802  the proto's name
        self, request: audit_pb2.GetCheckpointRequest, context: Context
    ) -> audit_pb2.GetCheckpointResponse:
        """The newest published checkpoint."""

        async def act(permit: Permit) -> audit_pb2.GetCheckpointResponse:
            return audit_pb2.GetCheckpointResponse(
                checkpoint=await self._prover.checkpoint(permit), verifier_key=self._verifier_key
            )

        return await self._chain.unary(table.GET_CHECKPOINT, context, _the_log, act)

    async def GetInclusionProof(  # noqa: N802  the proto's name
        self, request: audit_pb2.GetInclusionProofRequest, context: Context
    ) -> audit_pb2.GetInclusionProofResponse:
        """That an entry is in the log."""

        async def act(permit: Permit) -> audit_pb2.GetInclusionProofResponse:
            proof = await self._prover.inclusion(permit, request.index, request.size)
            return audit_pb2.GetInclusionProofResponse(
                size=proof.size, hashes=proof.hashes, checkpoint=proof.checkpoint
            )

        return await self._chain.unary(table.GET_INCLUSION_PROOF, context, _the_log, act)

    async def GetConsistencyProof(  # noqa: N802  the proto's name
        self, request: audit_pb2.GetConsistencyProofRequest, context: Context
    ) -> audit_pb2.GetConsistencyProofResponse:
        """That the log has only grown."""

        async def act(permit: Permit) -> audit_pb2.GetConsistencyProofResponse:
            proof = await self._prover.consistency(permit, request.old_size, request.size)
            return audit_pb2.GetConsistencyProofResponse(
                size=proof.size, hashes=proof.hashes, checkpoint=proof.checkpoint
            )

        return await self._chain.unary(table.GET_CONSISTENCY_PROOF, context, _the_log, act)

    async def FollowEntries(  # type: ignore[override]  # noqa: N802  it writes to the context
        self, request: audit_pb2.FollowEntriesRequest, context: Context
    ) -> None:
        """Entries as they come, until the client leaves, an hour is over or the server drains."""

        async def send(permit: Permit) -> None:
            wanted = _filter(request)
            follow = self._follower.follow(permit, wanted, _start_index(request))
            async for entries, next_index in follow:
                await _write(
                    context,
                    audit_pb2.FollowEntriesResponse(
                        entries=[
                            audit_pb2.AuditEntry(
                                origin=self._follower.origin, index=index, event=event
                            )
                            for index, event in entries
                        ],
                        next_index=next_index,
                    ),
                )

        async def act(permit: Permit) -> None:
            sending = asyncio.ensure_future(send(permit))
            draining = asyncio.ensure_future(self._draining.wait())
            try:
                await asyncio.wait(
                    [sending, draining],
                    timeout=FOLLOW_AGE_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if sending.done():
                    await sending
            finally:
                sending.cancel()
                draining.cancel()
                await asyncio.wait([sending, draining])

        await self._chain.unary(table.FOLLOW_ENTRIES, context, _the_log, act)


def _the_log() -> Resource:
    return Resource(None)


async def _write(context: Context, message: audit_pb2.FollowEntriesResponse) -> None:
    try:
        async with asyncio.timeout(WRITE_DEADLINE_S):
            await context.write(message)
    except TimeoutError:
        raise Cancelled("The follower takes nothing.", reason="CLIENT_STALLED") from None


def _filter(request: audit_pb2.ListEntriesRequest | audit_pb2.FollowEntriesRequest) -> EntryFilter:
    workspace = parse_workspace(request.workspace, field="workspace") if request.workspace else ""
    key_id = ""
    if request.key:
        workspace, key_id = parse_key_name(request.key, field="key")
    return EntryFilter(
        workspace=workspace,
        key_id=key_id,
        principal=request.principal,
        operation=request.operation,
        start_time=_time(request, "start_time"),
        end_time=_time(request, "end_time"),
    )


def _start_index(request: audit_pb2.ListEntriesRequest | audit_pb2.FollowEntriesRequest) -> int:
    if request.start_index > MAX_INDEX:
        raise InvalidRequest.field("start_index", "is past any log's end")
    return request.start_index


def _time(
    request: audit_pb2.ListEntriesRequest | audit_pb2.FollowEntriesRequest,
    field: Literal["start_time", "end_time"],
) -> datetime | None:
    """A follower has no times: it begins at an index."""
    if isinstance(request, audit_pb2.FollowEntriesRequest) or not request.HasField(field):
        return None
    value = request.start_time if field == "start_time" else request.end_time
    try:
        return value.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest.field(field, "is not a time between the years 1 and 9999") from None
