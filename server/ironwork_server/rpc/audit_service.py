"""AuditService: the log of every API and HSM operation, for auditors."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from ironwork.keys.v1 import audit_pb2, audit_pb2_grpc
from ironwork_server.core.errors import InvalidRequest
from ironwork_server.core.names import parse_key_name, parse_workspace
from ironwork_server.core.values import Resource
from ironwork_server.custody.gate import Permit
from ironwork_server.custody.read_audit import AuditLister
from ironwork_server.journal import EntryFilter
from ironwork_server.rpc import table
from ironwork_server.rpc.chain import Chain
from ironwork_server.rpc.context import Context


class AuditService(audit_pb2_grpc.AuditServiceServicer):
    """See audit.proto for every method's contract."""

    def __init__(self, *, chain: Chain, lister: AuditLister) -> None:
        self._chain = chain
        self._lister = lister

    async def ListEntries(  # noqa: N802  the proto's name
        self, request: audit_pb2.ListEntriesRequest, context: Context
    ) -> audit_pb2.ListEntriesResponse:
        """List entries, oldest first."""

        async def act(permit: Permit) -> audit_pb2.ListEntriesResponse:
            page = await self._lister.list(
                permit, _filter(request), size=request.page_size, token=request.page_token
            )
            return audit_pb2.ListEntriesResponse(
                entries=[
                    audit_pb2.AuditEntry(origin=page.origin, index=index, event=event)
                    for index, event in page.entries
                ],
                next_page_token=page.next_page_token,
            )

        return await self._chain.unary(table.LIST_ENTRIES, context, lambda: Resource(None), act)


def _filter(request: audit_pb2.ListEntriesRequest) -> EntryFilter:
    workspace = parse_workspace(request.workspace, field="workspace") if request.workspace else ""
    key_id = ""
    if request.key:
        workspace, key_id = parse_key_name(request.key, field="key")
    return EntryFilter(
        workspace=workspace,
        key_id=key_id,
        principal=request.principal,
        operation=request.operation,
        start_time=_time("start_time", request.start_time)
        if request.HasField("start_time")
        else None,
        end_time=_time("end_time", request.end_time) if request.HasField("end_time") else None,
    )


def _time(field: str, value: Timestamp) -> datetime:
    try:
        return value.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest.field(field, "is not a time between the years 1 and 9999") from None
