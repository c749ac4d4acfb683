"""Which version of the master key wraps: what the store says, read before each wrap (ADR 0022).

A version is in force by being switched on, never by being in a device. The first is switched on
when a server first starts on a store; after that `master-key rotate` does it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ironwork_hsm import FrontsKeys, KeyWrapper


class SwitchedVersions(Protocol):
    """The part of a store that this needs."""

    async def switched_version(self, backend: str) -> int | None: ...

    async def first_version(self, backend: str, newest: int) -> int: ...


@dataclass(frozen=True, slots=True)
class Wraps:
    """What a wrapper is to wrap with."""

    backend: str
    version: int
    mechanism: str

    @property
    def details(self) -> dict[str, str | int]:
        """As an event's details."""
        return {
            "backend": self.backend,
            "master_key_version": self.version,
            "mechanism": self.mechanism,
        }


async def wraps_with(wrapper: KeyWrapper, version: int | None = None) -> Wraps:
    """This version, and what the wrapper does with it. Without one, its newest. Errors: HsmError
    (KeyMissing where there is no version, or not this one).
    """
    if version is None:
        return Wraps(wrapper.name, wrapper.current_version, wrapper.mechanism)
    return Wraps(wrapper.name, version, await wrapper.mechanism_of(version))


async def follow(wrapper: KeyWrapper, store: SwitchedVersions) -> Wraps:
    """What is switched on; where nothing ever was, the newest version is from now on. Errors:
    HsmError, Unavailable.
    """
    version = await store.switched_version(wrapper.name)
    if version is None:
        version = await store.first_version(wrapper.name, wrapper.current_version)
    return await wraps_with(wrapper, version)


def by_name(wrappers: Iterable[KeyWrapper]) -> Mapping[str, KeyWrapper]:
    """Who unwraps what: each wrapper by its name, and those of the master keys that it fronts."""
    return {name: wrapper for wrapper in wrappers for name in _names(wrapper)}


def _names(wrapper: KeyWrapper) -> frozenset[str]:
    return wrapper.names if isinstance(wrapper, FrontsKeys) else frozenset({wrapper.name})
