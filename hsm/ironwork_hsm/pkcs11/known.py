"""Which versions a token is known to hold, and when one that is not known is worth a search.

A search goes over all keys of a label, so records that name versions which are not there must not
cost one each.
"""

import threading
import time
from collections.abc import Callable, Iterable

# Seconds for which a search that failed is believed.
BELIEVED_S = 1.0


class KnownVersions:
    """Of one label, shared by its lanes. Safe for threads; never held while a device is asked.

    A version is searched for at most once a second (once for each lane, where several ask at the
    same moment), and versions that cannot be the next one at most once a second together. Nobody
    waits for a version that another process has just made: it is the next one (versions count up
    by one), and that no search has missed, since what names it was written after it was made. One
    that was asked for before it was made is found within a second of that.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._known: set[int] = set()
        # When each version was found missing, within the last second; and any of them.
        self._missing: dict[int, float] = {}

    def found(self, versions: Iterable[int]) -> None:
        """The token holds these."""
        with self._lock:
            self._known.update(versions)
            for version in self._known & self._missing.keys():
                del self._missing[version]

    def missed(self, version: int) -> None:
        """A search that was made for it has not found it."""
        with self._lock:
            self._forget()
            self._known.discard(version)
            self._missing[version] = self._clock()

    def worth_a_search(self, version: int) -> bool:
        """Whether a session that does not know this version should search for it."""
        with self._lock:
            if version in self._known:
                return True  # another session has found it
            self._forget()
            if version == max(self._known, default=0) + 1:
                return version not in self._missing
            return not self._missing

    def _forget(self) -> None:
        past = self._clock() - BELIEVED_S
        self._missing = {one: at for one, at in self._missing.items() if at > past}
