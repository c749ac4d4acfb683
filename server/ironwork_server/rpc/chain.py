"""The one wrapper around every unary handler, and the refusal of every RPC without a row.

Identity, the table, the Gate, the handler, the error seam: in that order, for each.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio

from ironwork_server.core.errors import InvalidRequest, permission_denied
from ironwork_server.core.values import Claims, Resource
from ironwork_server.custody.gate import Gate, Permit
from ironwork_server.rpc.context import Context
from ironwork_server.rpc.errors import abort, sealed, to_status
from ironwork_server.rpc.peer import Peers, address
from ironwork_server.rpc.table import TABLE, Rpc

T = TypeVar("T")
# A string, since the class takes no parameters when the program runs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
# Names the resource of a request: its workspace and key. Raises InvalidRequest.
Locate = Callable[[], Resource]


class Chain:
    """What every RPC passes through."""

    def __init__(self, *, peers: Peers, gate: Gate) -> None:
        self._peers = peers
        self._gate = gate

    async def unary(
        self,
        rpc: Rpc,
        context: Context,
        locate: Locate,
        act: Callable[[Permit], Awaitable[T]],
    ) -> T:
        """Admit the caller, then act. Authorised before the request is validated: a name that
        does not parse counts as one in the caller's own workspace, so that only those who may do
        the thing at all are told what is wrong with it.
        """

        async def admitted() -> T:
            if rpc.action is None:
                raise permission_denied()
            principal = self._peers.principal(context)
            malformed: InvalidRequest | None = None
            try:
                resource = locate()
            except InvalidRequest as error:
                malformed, resource = error, Resource(principal.workspace)
            claims = Claims(peer=address(context))
            async with self._gate.admit(principal, rpc.action, resource, claims) as permit:
                if malformed is not None:
                    raise malformed
                return await act(permit)

        return await sealed(context, admitted)


class TableInterceptor(grpc.aio.ServerInterceptor):
    """Refuses every method that has no row in the table, whatever is registered."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """See grpc.aio.ServerInterceptor."""
        if handler_call_details.method in TABLE:
            return await continuation(handler_call_details)
        return _REFUSED


async def _refuse(requests: object, context: Context) -> None:
    await abort(context, to_status(permission_denied()))


# Of the one shape that does not wait for a request: a caller that sends none is refused as well.
_REFUSED: Handler = grpc.stream_stream_rpc_method_handler(_refuse)
