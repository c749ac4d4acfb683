"""The one wrapper around every unary handler.

Identity, the table, the Gate, the handler, the error seam: in that order, for each.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ironwork_server.core.errors import InvalidRequest, permission_denied
from ironwork_server.core.values import Claims, Resource
from ironwork_server.custody.gate import Gate, Permit
from ironwork_server.rpc.context import Context
from ironwork_server.rpc.errors import sealed
from ironwork_server.rpc.grant import Grants, Hold
from ironwork_server.rpc.peer import Peers, address
from ironwork_server.rpc.table import Rpc

T = TypeVar("T")
# Names the resource of a request: its workspace and key. Raises InvalidRequest.
Locate = Callable[[], Resource]


class Chain:
    """What every RPC passes through."""

    def __init__(self, *, peers: Peers, gate: Gate, grants: Grants) -> None:
        self._peers = peers
        self._gate = gate
        self._grants = grants

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
            hold = Hold()
            async with (
                hold.endings(),
                self._gate.admit(principal, rpc.action, resource, claims) as permit,
                hold.endings(),
            ):
                if malformed is not None:
                    raise malformed
                lost = self._grants.lost(context, principal, rpc.action, resource)
                async with hold.until(asyncio.ensure_future(lost)):
                    return await act(permit)

        return await sealed(context, admitted)


def unreadable() -> InvalidRequest:
    """What came is no message of this method."""
    return InvalidRequest(
        "The request cannot be read: it is not the protobuf message that this method takes.",
        reason="MESSAGE_MALFORMED",
    )
