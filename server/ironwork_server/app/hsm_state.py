"""What health knows of the HSM: the last operation's result, probed only while it is bad."""

import time
from collections.abc import Callable

from ironwork_server.core.errors import Unavailable
from ironwork_server.custody.probe import MasterKeyProbe

PROBE_INTERVAL_S = 2.0


class HsmState:
    """Told by the vault after each operation. An idle, healthy HSM is left in peace: each probe
    is two operations in its log and in ours.
    """

    def __init__(
        self, probe: MasterKeyProbe, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._probe = probe
        self._clock = clock
        self._healthy = True
        self._probed_at = float("-inf")

    def seen(self, healthy: bool) -> None:
        """An operation succeeded, or the device failed it."""
        self._healthy = healthy

    async def check(self) -> None:
        """Errors: Unavailable while the device fails."""
        if self._healthy:
            return
        if self._clock() - self._probed_at < PROBE_INTERVAL_S:
            raise Unavailable("The HSM does not answer.", reason="MASTER_KEY_UNAVAILABLE")
        self._probed_at = self._clock()
        await self._probe.check()
        self._healthy = True
