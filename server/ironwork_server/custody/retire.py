"""Retiring a version of the master key, and destroying it for good (ADR 0022)."""

import asyncio

from ironwork_hsm import KeptElsewhere, KeyWrapper, VersionDestroyer
from ironwork_server.core.errors import PreconditionFailed
from ironwork_server.core.ports import WrapStore
from ironwork_server.custody.operator_records import Operation, OperatorRecords, recorded

# What a server may still do with a row that it read before the last one was moved: the read's age
# (1 s), the wait for the HSM (3 s), and one to spare.
SETTLE_S = 5.0


async def retire_version(
    backend: str,
    version: int,
    store: WrapStore,
    records: OperatorRecords,
    *,
    wrapping: KeyWrapper | None,
) -> None:
    """Take nothing under this version of a master key any more. wrapping: the wrapper, where this
    master key is the one that wraps, and then the version that is switched on stays. Errors:
    PreconditionFailed (MASTER_KEY_VERSION_NEEDED, MASTER_KEY_VERSION_CURRENT), HsmError,
    StoreUnavailable.
    """
    if wrapping is not None and version == await store.first_version(
        backend, wrapping.current_version
    ):
        raise PreconditionFailed(
            f"Version {version} wraps new keys: rotate first, then rewrap.",
            reason="MASTER_KEY_VERSION_CURRENT",
        )
    needed = await store.retire(backend, version)
    if needed.rows or needed.pepper:
        what = [f"{needed.rows} keys"] * bool(needed.rows) + ["the pepper"] * needed.pepper
        raise PreconditionFailed(
            f"Version {version} still wraps {' and '.join(what)}: move them with"
            " `ironwork-server master-key rewrap`.",
            reason="MASTER_KEY_VERSION_NEEDED",
            metadata={"count": str(needed.rows + needed.pepper)},
        )
    await records.event(
        Operation("master_key.retire", {"backend": backend, "master_key_version": version})
    )


async def destroy_version(
    wrapper: KeyWrapper,
    backend: str,
    version: int,
    records: OperatorRecords,
    *,
    admin_pin_source: str,
    settle_s: float = SETTLE_S,
) -> None:
    """Destroy a version of the wrapper's master key `backend` that was just retired; nothing is
    done where it is destroyed already, by a run that was killed before it could say so. Errors:
    PreconditionFailed (MASTER_KEY_NOT_DESTROYED, with what to run where that is done elsewhere),
    HsmError, Unavailable.
    """
    if isinstance(wrapper, KeptElsewhere):
        await asyncio.sleep(settle_s)
        raise PreconditionFailed(
            f"Version {version} is retired, and not destroyed yet: no server may do that. Run, on"
            " this machine as the user that ironwork-hsmd runs as (the file holds the PIN of the"
            f" token's security officer): {wrapper.destroy_command(backend, version)}",
            reason="MASTER_KEY_NOT_DESTROYED",
        )
    if not isinstance(wrapper, VersionDestroyer):
        raise PreconditionFailed(
            f"{wrapper.name} destroys no versions for us: use the device's own tools.",
            reason="MASTER_KEY_NOT_DESTROYED",
        )
    destroyer: VersionDestroyer = wrapper
    if await _is_gone(wrapper, version):
        return
    await asyncio.sleep(settle_s)
    await recorded(
        records,
        Operation("hsm.destroy", {"backend": backend, "master_key_version": version}),
        lambda: destroyer.destroy_version(version, admin_pin_source=admin_pin_source),
        lambda _: {},
    )


async def _is_gone(wrapper: KeyWrapper, version: int) -> bool:
    """Versions are made one after the other, so one below the newest was there."""
    held = [one.version for one in await wrapper.versions()]
    return bool(held) and 0 < version < held[-1] and version not in held
