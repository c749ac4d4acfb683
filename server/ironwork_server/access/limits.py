"""Limits per principal and per workspace: how much one caller may hold open at once.

Counts are of this process (each worker has its own), and a count that reaches zero is forgotten,
so that memory is bounded by what is open. Used from one event loop: taking and giving back never
await, so no lock is needed.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields

from ironwork_server.access.errors import AccessConfigurationError
from ironwork_server.access.rates import Rates
from ironwork_server.core.errors import LimitExceeded
from ironwork_server.core.values import Principal

# Names of reasons that a RefusalAggregator tells apart; more than ours, and a bound all the same.
MAX_REASONS = 64
OTHER_REASONS = "OTHER"


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """Settings under `limits`. All are positive whole numbers."""

    streams_per_principal: int = 256
    streams_per_workspace: int = 1024
    requests_per_principal: int = 256
    requests_per_workspace: int = 1024
    unary_per_principal: int = 128
    unary_per_workspace: int = 256
    rate_per_principal: int = 200

    def __post_init__(self) -> None:
        """Raises AccessConfigurationError, naming the setting."""
        for setting in fields(self):
            value = getattr(self, setting.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise AccessConfigurationError(
                    f"limits.{setting.name}", "must be a whole number of at least 1"
                )


@dataclass(frozen=True, slots=True)
class _Limit:
    """One limit: its reason, its setting, and what its callers should know."""

    reason: str
    setting: str
    what: str
    retry_after_s: float


_STREAMS = (
    _Limit("LIMIT_OPEN_STREAMS_PRINCIPAL", "streams_per_principal", "open streams", 5.0),
    _Limit("LIMIT_OPEN_STREAMS_WORKSPACE", "streams_per_workspace", "open streams", 5.0),
)
_REQUESTS = (
    _Limit("LIMIT_REQUESTS_PRINCIPAL", "requests_per_principal", "requests in flight", 1.0),
    _Limit("LIMIT_REQUESTS_WORKSPACE", "requests_per_workspace", "requests in flight", 1.0),
)
_UNARY = (
    _Limit("LIMIT_UNARY_CALLS_PRINCIPAL", "unary_per_principal", "unary calls in flight", 1.0),
    _Limit("LIMIT_UNARY_CALLS_WORKSPACE", "unary_per_workspace", "unary calls in flight", 1.0),
)


# How many seconds' worth of calls may come at once.
BURST_S = 30


class Limits:
    """Counts what is open. Each method is a context manager that raises LimitExceeded on entry
    and then has counted nothing.
    """

    def __init__(
        self, settings: LimitSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings = settings
        rate = settings.rate_per_principal
        self._rates = Rates(per_s=rate, burst=rate * BURST_S, clock=clock)
        self._counts: Counter[tuple[str, str]] = Counter()

    def stream(self, principal: Principal) -> AbstractContextManager[None]:
        """One open WithKey stream; counted for the principal's own workspace."""
        return self._held(_STREAMS, principal, principal.workspace)

    def request(self, principal: Principal, workspace: str | None) -> AbstractContextManager[None]:
        """One Claude request in flight, on this workspace."""
        return self._held(_REQUESTS, principal, workspace)

    def unary(self, principal: Principal, workspace: str | None) -> AbstractContextManager[None]:
        """One unary RPC in flight, on this workspace (None: the audit log)."""
        return self._held(_UNARY, principal, workspace)

    def rate(self, principal: Principal) -> None:
        """One call, whatever it is: each costs entries of the audit log. Raises LimitExceeded."""
        if self._rates.take(principal.spiffe_id):
            return
        allowed = self.settings.rate_per_principal
        raise LimitExceeded(
            f"This principal makes more than {allowed} calls a second, as many as"
            " limits.rate_per_principal allows; slow down, or ask the operator to raise the limit.",
            reason="LIMIT_RATE_PRINCIPAL",
            metadata={"limit": "limits.rate_per_principal", "value": str(allowed)},
            retry_after_s=1.0,
        )

    def open_counts(self) -> dict[str, int]:
        """How many of each kind are open, over all principals; for metrics."""
        totals = {"streams": 0, "requests": 0, "unary": 0}
        for (setting, _), count in self._counts.items():
            kind, _, scope = setting.partition("_per_")
            if scope == "principal":
                totals[kind] += count
        return totals

    @contextmanager
    def _held(
        self, limits: tuple[_Limit, _Limit], principal: Principal, workspace: str | None
    ) -> Iterator[None]:
        per_principal, per_workspace = limits
        held = [(per_principal, principal.spiffe_id)]
        if workspace is not None:
            held.append((per_workspace, workspace))
        for limit, name in held:
            self._check(limit, name)
        keys = [(limit.setting, name) for limit, name in held]
        self._counts.update(keys)
        try:
            yield
        finally:
            for key in keys:
                self._give_back(key)

    def _check(self, limit: _Limit, name: str) -> None:
        allowed: int = getattr(self.settings, limit.setting)
        if self._counts[limit.setting, name] < allowed:
            return
        scope = limit.setting.partition("_per_")[2]
        raise LimitExceeded(
            f"This {scope} has {allowed} {limit.what}, as many as limits.{limit.setting} allows; "
            "finish some, or ask the operator to raise the limit.",
            reason=limit.reason,
            metadata={"limit": f"limits.{limit.setting}", "value": str(allowed)},
            retry_after_s=limit.retry_after_s,
        )

    def _give_back(self, key: tuple[str, str]) -> None:
        self._counts[key] -= 1
        if self._counts[key] == 0:
            del self._counts[key]


@dataclass(frozen=True, slots=True)
class RefusalSummary:
    """count refusals for one reason within the last `seconds`."""

    reason: str
    count: int
    seconds: float


@dataclass(slots=True)
class _Window:
    """Since when, and how many were counted that no summary has told of."""

    began: float
    count: int = 0


class RefusalAggregator:
    """Turns refusals of unauthenticated peers into few records, whatever their number.

    The first refusal for a reason is told of at once; those that follow within window_s seconds
    are counted and told of together, once, after it. At most MAX_REASONS reasons are kept apart.
    clock: seconds, monotonic.
    """

    def __init__(
        self, *, window_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._window_s = window_s
        self._clock = clock
        self._windows: dict[str, _Window] = {}

    def refused(self, reason: str) -> RefusalSummary | None:
        """Count one refusal. Gives the summary to record now, if one is due for its reason."""
        if reason not in self._windows and len(self._windows) >= MAX_REASONS:
            reason = OTHER_REASONS
        now = self._clock()
        window = self._windows.get(reason)
        if window is None:
            self._windows[reason] = _Window(now)
            return RefusalSummary(reason, 1, 0.0)
        window.count += 1
        return self._summary(reason, window, now)

    def due(self) -> list[RefusalSummary]:
        """Summaries of the windows that have ended; to be asked for at intervals. A reason that was
        quiet for a whole window is forgotten.
        """
        now = self._clock()
        found = [self._summary(reason, window, now) for reason, window in self._windows.items()]
        quiet = [
            reason
            for reason, window in self._windows.items()
            if window.count == 0 and now - window.began >= self._window_s
        ]
        for reason in quiet:
            del self._windows[reason]
        return [summary for summary in found if summary is not None]

    @property
    def quiet(self) -> bool:
        """Whether nothing is counted and no window is open."""
        return not self._windows

    def rest(self) -> list[RefusalSummary]:
        """What no summary has told of, whether or not its window has ended: for the end of serving.
        All is forgotten.
        """
        now = self._clock()
        windows, self._windows = self._windows, {}
        return [
            RefusalSummary(reason, window.count, now - window.began)
            for reason, window in windows.items()
            if window.count
        ]

    def _summary(self, reason: str, window: _Window, now: float) -> RefusalSummary | None:
        seconds = now - window.began
        if window.count == 0 or seconds < self._window_s:
            return None
        summary = RefusalSummary(reason, window.count, seconds)
        window.began, window.count = now, 0
        return summary
