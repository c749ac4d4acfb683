"""Retiring a version of the master key, and destroying it for good (ADR 0022)."""

import asyncio

from ironwork_hsm import KeyWrapper, VersionDestroyer
from ironwork_server.core.errors import PreconditionFailed
from ironwork_server.core.ports import WrapStore
from ironwork_server.custody.operator_records import Operation, OperatorRecords, recorded

# What a server may still do with a row that it read before the last one was moved: the read's age
# (1 s), the wait for the HSM (3 s), and one to spare.
SETTLE_S = 5.0


async def retire_version(
    wrapper: KeyWrapper, version: int, store: WrapStore, records: OperatorRecords, *, wraps: bool
) -> None:
    """Take nothing under this version any more. wraps: whether wrapper is the one that wraps, and
    then its current version stays. Errors: PreconditionFailed (MASTER_KEY_VERSION_NEEDED,
    MASTER_KEY_VERSION_CURRENT), HsmError, StoreUnavailable.
    """
    if wraps and version == await _current(wrapper, store):
        raise PreconditionFailed(
            f"Version {version} wraps new keys: rotate first, then rewrap.",
            reason="MASTER_KEY_VERSION_CURRENT",
        )
    needed = await store.retire(wrapper.name, version)
    if needed.rows or needed.pepper:
        what = [f"{needed.rows} keys"] * bool(needed.rows) + ["the pepper"] * needed.pepper
        raise PreconditionFailed(
            f"Version {version} still wraps {' and '.join(what)}: move them with"
            " `ironwork-server master-key rewrap`.",
            reason="MASTER_KEY_VERSION_NEEDED",
            metadata={"count": str(needed.rows + needed.pepper)},
        )
    await records.event(
        Operation("master_key.retire", {"backend": wrapper.name, "master_key_version": version})
    )


async def destroy_version(
    wrapper: KeyWrapper,
    version: int,
    records: OperatorRecords,
    *,
    admin_pin_source: str,
    settle_s: float = SETTLE_S,
) -> None:
    """Destroy a version that was just retired. Errors: PreconditionFailed, HsmError,
    Unavailable.
    """
    if not isinstance(wrapper, VersionDestroyer):
        raise PreconditionFailed(
            f"{wrapper.name} destroys no versions for us: use the device's own tools.",
            reason="MASTER_KEY_NOT_DESTROYED",
        )
    destroyer: VersionDestroyer = wrapper
    await asyncio.sleep(settle_s)
    await recorded(
        records,
        Operation("hsm.destroy", {"backend": wrapper.name, "master_key_version": version}),
        lambda: destroyer.destroy_version(version, admin_pin_source=admin_pin_source),
        lambda _: {},
    )


async def _current(wrapper: KeyWrapper, store: WrapStore) -> int:
    return await store.first_version(wrapper.name, wrapper.current_version)
