"""Starts a device's module anew for one of its users, in a thread of its own: every other thread
may hang in the module.
"""

from collections.abc import Callable

from ironwork_hsm.interface import HsmError, Unavailable
from ironwork_hsm.lanes import Lanes, keep
from ironwork_hsm.pkcs11 import login
from ironwork_hsm.pkcs11.module import Module
from ironwork_hsm.uri import Pkcs11Uri


class Restarter:
    """One user's. translate: the seam of that user's errors."""

    def __init__(self, uri: Pkcs11Uri, translate: Callable[[Exception], HsmError]) -> None:
        self._uri = uri
        self._lane: Lanes[None] = Lanes(
            setup=lambda: None, teardown=keep, translate=translate, count=1, capacity=1
        )

    async def start(self, *, deadline_s: float) -> None:
        """Start the thread."""
        await self._lane.start(deadline_s=deadline_s)

    async def restart(self, module: Module | None, *, deadline_s: float) -> None:
        """C_Finalize and C_Initialize; every other user of the module goes on, with another
        session. Not where the PIN's file holds what the token refused. Raises ConfigurationError,
        PinRefused, Unavailable.
        """
        await self._lane.run(lambda _: self._restart(module), deadline_s=deadline_s)

    async def close(self, *, deadline_s: float) -> None:
        """End the thread."""
        await self._lane.close(deadline_s=deadline_s)

    def _restart(self, module: Module | None) -> None:
        if module is None:
            raise Unavailable("The HSM was never opened.")
        login.check_refused(module, self._uri)
        module.restart()
