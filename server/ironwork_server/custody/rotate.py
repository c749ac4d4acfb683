"""A new version of the master key: made, proven, and only then switched on (ADR 0022).

Each step leaves a state that the next run goes on from: a version that was made and never switched
on is proven and switched on, instead of making another.
"""

from collections.abc import Sequence

from ironwork_hsm import HsmError, KeptElsewhere, KeyCreator, KeyVersion, KeyWrapper
from ironwork_server.core.errors import PreconditionFailed, Unavailable
from ironwork_server.core.ports import WrapStore
from ironwork_server.custody.generate import generate_master_key
from ironwork_server.custody.operator_records import Operation, OperatorRecords, prove
from ironwork_server.custody.vault import map_hsm_error


async def rotate_master_key(
    wrappers: Sequence[KeyWrapper], store: WrapStore, records: OperatorRecords
) -> int:
    """Rotate the first wrapper's key; the version that is switched on now. Every wrapper does a
    round trip before it is. Errors: HsmError, Unavailable, PreconditionFailed.
    """
    wrapper = wrappers[0]
    versions = await wrapper.versions()
    if not versions:
        raise PreconditionFailed(
            "There is no master key yet: make it with `ironwork-server master-key create`.",
            reason="MASTER_KEY_NOT_CREATED",
        )
    newest = versions[-1].version
    # Before there is a newer one: a server that starts in between must not take that.
    current = await store.first_version(wrapper.name, newest)
    if newest <= current:
        newest = (await _create(wrapper, records)).version
    for each in wrappers:
        try:
            await prove(each, records, newest if each is wrapper else None)
        except HsmError as error:
            raise Unavailable(
                f"{each.name} failed its round trip, so nothing was switched on: {error}",
                reason=map_hsm_error(error).reason,
            ) from None
    await store.switch_on(wrapper.name, newest)
    await records.event(
        Operation("master_key.switch", {"backend": wrapper.name, "master_key_version": newest})
    )
    return newest


async def _create(wrapper: KeyWrapper, records: OperatorRecords) -> KeyVersion:
    if isinstance(wrapper, KeptElsewhere):
        raise PreconditionFailed(
            "The HSM process' token holds no newer version than the one that is switched on. Make"
            " one, on this machine as the user that ironwork-hsmd runs as, and run this again:"
            f" {wrapper.create_command}",
            reason="MASTER_KEY_NOT_CREATED",
        )
    if not isinstance(wrapper, KeyCreator):
        raise PreconditionFailed(
            f"{wrapper.name} makes no versions for us: make the next one with the device's own"
            " tools and run this again, or let the cloud rotate.",
            reason="MASTER_KEY_NOT_CREATED",
        )
    return await generate_master_key(wrapper.name, wrapper, records)
