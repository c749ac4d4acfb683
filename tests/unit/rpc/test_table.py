"""The table of RPCs, held against the descriptors and against a running server."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2

from fixtures.agent import reason_of, status_of
from fixtures.server import AGENT, AUDITOR, TestService
from ironwork.keys.v1 import audit_pb2, keys_pb2
from ironwork_server.core.values import Action
from ironwork_server.rpc.table import TABLE

DESCRIPTORS = (keys_pb2.DESCRIPTOR, audit_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)


def methods() -> set[str]:
    """Every method of every proto that is served."""
    return {
        f"/{service.full_name}/{method.name}"
        for file in DESCRIPTORS
        for service in file.services_by_name.values()
        for method in service.methods
    }


def test_every_rpc_has_its_row() -> None:
    """What the protos declare and what the table lists are the same methods."""
    # Health's list of all services is of no use to our clients, and is not served.
    assert set(TABLE) == methods() - {"/grpc.health.v1.Health/List"}


def test_only_health_is_open_to_every_peer() -> None:
    """Every RPC of ours is decided by policy: those of KeyService each by an action of its own,
    those of AuditService, which all read the log, by one.
    """
    open_to_all = {name for name, rpc in TABLE.items() if rpc.action is None}
    assert open_to_all == {name for name in TABLE if name.startswith("/grpc.health.v1.Health/")}
    actions = [rpc.action for name, rpc in TABLE.items() if "KeyService" in name]
    assert sorted(str(action) for action in actions) == sorted(
        str(action) for action in Action if action is not Action.READ_AUDIT
    )
    reading = {rpc.action for name, rpc in TABLE.items() if "AuditService" in name}
    assert reading == {Action.READ_AUDIT}


@pytest.mark.parametrize(
    "method",
    [
        "/ironwork.keys.v1.KeyService/RevealKey",
        "/ironwork.keys.v1.KeyService/addkey",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.health.v1.Health/List",
        "/x/y",
    ],
)
async def test_what_has_no_row_is_refused(service: TestService, method: str) -> None:
    """A method that is not in the table answers PERMISSION_DENIED, whatever it is called."""
    call = service.channel(AGENT).unary_unary(method)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(b"", timeout=20)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert reason_of(status_of(refused.value)) == "PERMISSION_DENIED"


async def test_each_role_reaches_its_own_rpcs_only(service: TestService) -> None:
    """An agent may not list keys, an admin may not read the log, an auditor may not add keys."""
    attempts = (
        service.keys(AGENT).ListMasked(keys_pb2.ListMaskedRequest(parent="workspaces/acme")),
        service.audit(AGENT).ListEntries(audit_pb2.ListEntriesRequest()),
        service.keys(AUDITOR).AddKey(keys_pb2.AddKeyRequest(parent="workspaces/acme")),
    )
    for attempt in attempts:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await attempt
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
