"""What health knows of the HSMs, and the one task that brings them back.

An operation that the device failed makes the HSM suspect, and a probe decides: it may be the one
call (or a record that names a version that there is not). While probes fail the device is opened
anew, after pauses that grow, by this task and nobody else, however many calls fail meanwhile.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

from ironwork_hsm import HsmError
from ironwork_server.core.described import described
from ironwork_server.core.errors import IronworkError, Unavailable
from ironwork_server.custody.probe import MasterKeyProbe
from ironwork_server.custody.vault import map_hsm_error

log = logging.getLogger(__name__)

# After a probe that succeeded: a suspicion costs at most one probe in this time.
PROBE_INTERVAL_S: Final = 2.0
# Between attempts. Each pause is cut by up to a half, so that replicas do not come all at once.
FIRST_PAUSE_S: Final = 0.25
LAST_PAUSE_S: Final = 2.0


class HsmState:
    """Told by the vault after each operation. HSMs that work are left in peace: each probe is two
    operations in their log and in ours.
    """

    def __init__(
        self,
        probe: MasterKeyProbe,
        *,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """pause: waits for these seconds. chance: a number from 0 to 1."""
        self._probe = probe
        self._pause = pause
        self._chance = chance
        self._suspected = asyncio.Event()
        # Why the last probe that failed did so; empty while the HSMs work, and health knows that
        # they did not.
        self._reason = ""
        self._works_again = True

    def seen(self, healthy: bool) -> None:
        """An operation succeeded, or the device failed it."""
        if not healthy:
            self._suspected.set()

    async def check(self) -> None:
        """Errors: Unavailable while an HSM fails its probe, and once where that is over already."""
        reason = self._reason
        if self._works_again:
            self._reason = ""
        if reason:
            raise Unavailable("The HSM does not answer.", reason=reason)

    async def run(self) -> None:
        """Probe on suspicion, and bring back what fails; until cancelled."""
        while True:
            await self._suspected.wait()
            await self._bring_back()
            self._suspected.clear()
            await self._pause(PROBE_INTERVAL_S)

    async def _bring_back(self) -> None:
        pause = FIRST_PAUSE_S
        while not await self._works():
            if await self._reopened() and await self._works():
                break
            await self._pause(pause * (1 - self._chance() / 2))
            pause = min(pause * 2, LAST_PAUSE_S)

    async def _works(self) -> bool:
        """Probe; health says from now on what came of it."""
        try:
            await self._probe.check()
        except Exception as error:  # noqa: BLE001  whatever it is, this task must go on
            self._reason, self._works_again = _reason(error), False
            return False
        self._works_again = True
        return True

    async def _reopened(self) -> bool:
        """Whether there is a device that was opened anew."""
        try:
            return await self._probe.reopen()
        except Exception as error:  # noqa: BLE001  whatever it is, this task must go on
            self._reason = _reason(error)
            return False


def _reason(error: Exception) -> str:
    if isinstance(error, IronworkError):
        return error.reason
    if isinstance(error, HsmError):
        # A configuration that cannot work; the start says what is wrong with it.
        return map_hsm_error(error).reason
    log.error("error.unexpected", extra=described(error))
    return "INTERNAL"
