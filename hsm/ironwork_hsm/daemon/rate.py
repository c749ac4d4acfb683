"""How many operations a uid may ask for: token buckets, bounded in number."""

import time
from collections.abc import Callable

# Allow lists are short; more uids than this are not kept apart.
_MAX_BUCKETS = 1024


class TokenBucket:
    """rate: tokens a second. burst: tokens that it holds when full."""

    __slots__ = ("_at", "_burst", "_clock", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._at = clock()

    def take(self) -> bool:
        """Whether there was a token; it is gone then."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Rates:
    """One bucket for each uid and sort of operation."""

    def __init__(
        self, rate: float, burst: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: dict[tuple[int, str], TokenBucket] = {}

    def take(self, uid: int, sort: str) -> bool:
        """Whether this uid may do one more of this sort now."""
        bucket = self._buckets.get((uid, sort))
        if bucket is None:
            if len(self._buckets) >= _MAX_BUCKETS:
                return False
            bucket = self._buckets[uid, sort] = TokenBucket(self._rate, self._burst, self._clock)
        return bucket.take()
