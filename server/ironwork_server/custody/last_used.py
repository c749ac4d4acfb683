"""When keys were last used, and whether Anthropic rejected them: written in batches, since a
write for each Claude request would cost more than the request.
"""

import asyncio
import logging
from datetime import UTC, datetime

from ironwork_server.core.errors import IronworkError
from ironwork_server.core.ports import KeyStore
from ironwork_server.core.values import KeyState, StoredKey

log = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 5.0
# More keys than this in one interval are not noted: each has its uses in the audit log.
MAX_NOTED = 10_000


class UseRecorder:
    """Collects uses and writes them every few seconds and at the end. A write that fails is
    logged and forgotten: `last used` is for people, and the audit log holds every use.
    """

    def __init__(self, store: KeyStore, *, interval_s: float = FLUSH_INTERVAL_S) -> None:
        self._store = store
        self._interval_s = interval_s
        self._uses: dict[tuple[str, str], datetime] = {}
        self._rejected: set[tuple[str, str]] = set()

    def note(self, key: StoredKey, *, rejected: bool) -> None:
        """A request was sent with this key; rejected: Anthropic answered 401."""
        ref = (key.workspace, key.key_id)
        if ref not in self._uses and len(self._uses) >= MAX_NOTED:
            return
        self._uses[ref] = datetime.now(UTC)
        if rejected and key.state is not KeyState.REJECTED_BY_ANTHROPIC:
            self._rejected.add(ref)

    async def flush(self) -> None:
        """Write what was noted."""
        uses, self._uses = self._uses, {}
        rejected, self._rejected = self._rejected, set()
        try:
            if uses:
                await self._store.record_uses(uses)
            for workspace, key_id in rejected:
                await self._store.set_state(workspace, key_id, KeyState.REJECTED_BY_ANTHROPIC)
        except IronworkError:
            log.warning("uses.not_written")

    async def run(self) -> None:
        """Flush until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            await self.flush()
