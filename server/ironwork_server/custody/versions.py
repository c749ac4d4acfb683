"""Which version of the master key wraps: what the store says, read before each wrap (ADR 0022)."""

from typing import Protocol

from ironwork_hsm import KeyWrapper, VersionChooser


class SwitchedVersions(Protocol):
    """The part of a store that this needs."""

    async def switched_version(self, backend: str) -> int | None: ...


async def follow(wrapper: KeyWrapper, store: SwitchedVersions) -> None:
    """Have wrapper wrap with the version that is switched on, if one ever was. A backend whose
    versions are not ours to choose (a cloud KMS) goes by itself. Errors: HsmError, Unavailable.
    """
    version = await store.switched_version(wrapper.name)
    if version is not None and isinstance(wrapper, VersionChooser):
        await wrapper.choose_version(version)
