"""`ironwork-hsmd destroy`: destroys a version of a master key for good, in its device, on record.

An operator's command like `create`: no request over the socket can destroy anything. It takes the
PIN of the token's security officer, from a file that neither the process nor a server ever reads.
"""

from ironwork_hsm.backends import open_backend
from ironwork_hsm.daemon.latch import PinLatch
from ironwork_hsm.daemon.operator import operator_record, recorded, trying_pin
from ironwork_hsm.daemon.serve import name_of
from ironwork_hsm.daemon.settings import Settings
from ironwork_hsm.interface import (
    ConfigurationError,
    KeyMissing,
    KeyWrapper,
    Unavailable,
    VersionDestroyer,
)
from ironwork_hsm.remote.status import read_status
from ironwork_hsm.uri import pin_source


async def destroy(
    settings: Settings, version: int, *, backend: str | None, admin_pin_source: str
) -> None:
    """Destroy a version of this backend's master key (the first's without one): what it wraps opens
    no more. Refused for the newest version, for one that is not there, and for the one that the
    running process wrapped with last. backend: its name. admin_pin_source: see VersionDestroyer. A
    PIN that was refused is tried no more, as the process does with its own. Raises HsmError.
    """
    uri = _uri_of(settings, backend)
    await _refuse_in_use(settings, name_of(uri), version)
    with trying_pin(settings, uri):
        wrapper = await open_backend(uri, allow_missing=True)
    try:
        await _refuse_absent(wrapper, version)
        if not isinstance(wrapper, VersionDestroyer):
            raise ConfigurationError(
                f"{wrapper.name}: destroy the version with the device's own tools."
            )
        destroyer: VersionDestroyer = wrapper

        async def act() -> None:
            await _destroy(settings, destroyer, version, admin_pin_source)

        async with operator_record(settings) as record:
            await recorded(
                record,
                "hsm.destroy",
                {"backend": wrapper.name, "master_key_version": version},
                act,
                lambda _: {},
            )
    finally:
        await wrapper.close()


async def _destroy(
    settings: Settings, destroyer: VersionDestroyer, version: int, admin_pin_source: str
) -> None:
    if not admin_pin_source:
        await destroyer.destroy_version(version, admin_pin_source="")
        return
    # An officer's PIN is locked by refusals too, and then the token can only be wiped.
    with PinLatch(settings.state, pin_source(admin_pin_source)).trying():
        await destroyer.destroy_version(version, admin_pin_source=admin_pin_source)


def _uri_of(settings: Settings, backend: str | None) -> str:
    named = {name_of(uri): uri for uri in settings.backends}
    if backend is None:
        return settings.backends[0]
    if backend not in named:
        raise ConfigurationError(f"backends lists no such key; it lists {', '.join(named)}.")
    return named[backend]


async def _refuse_absent(wrapper: KeyWrapper, version: int) -> None:
    held = [one.version for one in await wrapper.versions()]
    if version not in held:
        raise KeyMissing(
            f"{wrapper.name} holds no version {version}, so nothing was destroyed; it holds"
            f" {', '.join(map(str, held)) or 'none'}."
        )
    if version == held[-1]:
        raise ConfigurationError(
            f"Version {version} of {wrapper.name} is the newest, so nothing was destroyed: make"
            " another, and rotate, rewrap and retire at every server first."
        )


async def _refuse_in_use(settings: Settings, name: str, version: int) -> None:
    """What every store has retired wraps no more. Only stores know that; the process, if it runs,
    knows at least with what it wrapped last.
    """
    try:
        report = await read_status(settings.socket)
    except Unavailable:
        return  # it does not run
    for device in report.get("devices", ()):
        if device.get("name") == name and device.get("wrapped_last") == version:
            raise ConfigurationError(
                f"Version {version} of {name} is what the running process wrapped with last, so"
                " nothing was destroyed: rotate, rewrap and retire at every server first."
            )
