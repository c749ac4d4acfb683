"""KeyService: proto messages in, use cases, proto messages out."""

from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc
from ironwork_server.core.names import parse_key_name, parse_workspace
from ironwork_server.core.values import Resource
from ironwork_server.custody.add_key import KeyAdder, NewKey
from ironwork_server.custody.delete_key import KeyDeleter
from ironwork_server.custody.gate import Permit
from ironwork_server.custody.list_keys import KeyLister
from ironwork_server.rpc import table
from ironwork_server.rpc.chain import Chain
from ironwork_server.rpc.context import Context
from ironwork_server.rpc.convert import masked_key
from ironwork_server.rpc.errors import sealed
from ironwork_server.rpc.with_key import StreamParts, WithKeyStream


class KeyService(keys_pb2_grpc.KeyServiceServicer):
    """See keys.proto for every method's contract."""

    def __init__(
        self,
        *,
        chain: Chain,
        adder: KeyAdder,
        lister: KeyLister,
        deleter: KeyDeleter,
        streams: StreamParts,
    ) -> None:
        self._chain = chain
        self._adder = adder
        self._lister = lister
        self._deleter = deleter
        self._streams = streams

    async def AddKey(  # noqa: N802  the proto's name
        self, request: keys_pb2.AddKeyRequest, context: Context
    ) -> keys_pb2.AddKeyResponse:
        """Check, seal and keep a key."""

        async def act(permit: Permit) -> keys_pb2.AddKeyResponse:
            added = await self._adder.add(
                permit,
                NewKey(
                    api_key=request.api_key,
                    display_name=request.display_name,
                    request_id=request.request_id,
                    allow_different_organization=request.allow_different_organization,
                ),
            )
            return keys_pb2.AddKeyResponse(key=masked_key(added))

        return await self._chain.unary(
            table.ADD_KEY, context, lambda: Resource(parse_workspace(request.parent)), act
        )

    async def ListMasked(  # noqa: N802  the proto's name
        self, request: keys_pb2.ListMaskedRequest, context: Context
    ) -> keys_pb2.ListMaskedResponse:
        """List a workspace's keys as masks."""

        async def act(permit: Permit) -> keys_pb2.ListMaskedResponse:
            page = await self._lister.list(permit, size=request.page_size, token=request.page_token)
            return keys_pb2.ListMaskedResponse(
                keys=[masked_key(key) for key in page.keys], next_page_token=page.next_page_token
            )

        return await self._chain.unary(
            table.LIST_MASKED, context, lambda: Resource(parse_workspace(request.parent)), act
        )

    async def DeleteKey(  # noqa: N802  the proto's name
        self, request: keys_pb2.DeleteKeyRequest, context: Context
    ) -> keys_pb2.DeleteKeyResponse:
        """Destroy a key."""

        def locate() -> Resource:
            return Resource(*parse_key_name(request.name))

        async def act(permit: Permit) -> keys_pb2.DeleteKeyResponse:
            deleted = await self._deleter.delete(
                permit,
                locate().key_id or "",
                cancel_in_flight=request.cancel_in_flight,
                request_id=request.request_id,
            )
            return keys_pb2.DeleteKeyResponse(
                current=masked_key(deleted.current) if deleted.current else None,
                cancelled_requests=deleted.cancelled,
            )

        return await self._chain.unary(table.DELETE_KEY, context, locate, act)

    async def WithKey(  # type: ignore[override]  # noqa: N802
        self, _: object, context: Context
    ) -> None:
        """Serve one stream; reads and writes go through the context, as grpc.aio allows."""
        await sealed(context, WithKeyStream(context, self._streams).run)
