"""`ironwork-hsmd create`: makes a version of the master key, in the device, on record.

An operator's command, never a request over the socket: a server that was taken over cannot make
keys.
"""

from ironwork_hsm.backends import open_backend
from ironwork_hsm.daemon.operator import operator_record, recorded, trying_pin
from ironwork_hsm.daemon.settings import Settings
from ironwork_hsm.interface import ConfigurationError, KeyCreator


async def create(settings: Settings, *, next_version: bool) -> int | None:
    """The version that was made, by the first backend; None where there is one and no further one
    was asked for. A running process learns of it by SIGHUP. Raises HsmError.
    """
    with trying_pin(settings, settings.backends[0]):
        wrapper = await open_backend(settings.backends[0], allow_missing=True)
    try:
        if await wrapper.versions() and not next_version:
            return None
        if not isinstance(wrapper, KeyCreator):
            raise ConfigurationError(f"{wrapper.name}: create the key with the device's own tools.")
        async with operator_record(settings) as record:
            made = await recorded(
                record,
                "hsm.generate",
                {"backend": wrapper.name},
                wrapper.create_version,
                lambda made: {"master_key_version": made.version},
            )
            return made.version
    finally:
        await wrapper.close()
