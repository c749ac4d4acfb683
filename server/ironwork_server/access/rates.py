"""How many calls a principal may make in a time: token buckets, one for each name.

Used from one event loop. A bucket that is full again is forgotten, so that memory is bounded by
who called lately; beyond MAX_NAMES the rest share one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

MAX_NAMES = 4096
_SHARED = ""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Rates:
    """per_s tokens a second for each name, burst at most. clock: seconds, monotonic."""

    def __init__(
        self, *, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def take(self, name: str) -> bool:
        """Take one token; False where there is none."""
        bucket = self._bucket(name)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    def _bucket(self, name: str) -> _Bucket:
        now = self._clock()
        if name not in self._buckets and len(self._buckets) >= MAX_NAMES:
            self._forget_full(now)
            if len(self._buckets) >= MAX_NAMES:
                name = _SHARED
        bucket = self._buckets.setdefault(name, _Bucket(self._burst, now))
        self._fill(bucket, now)
        return bucket

    def _forget_full(self, now: float) -> None:
        for bucket in self._buckets.values():
            self._fill(bucket, now)
        self._buckets = {n: b for n, b in self._buckets.items() if b.tokens < self._burst}

    def _fill(self, bucket: _Bucket, now: float) -> None:
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self._per_s)
        bucket.at = now
