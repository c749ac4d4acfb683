"""Who used what, counted."""

from dataclasses import dataclass, field
from typing import Final

from ironwork_audit.event import EVENT, OUTCOME
from ironwork_audit.report.bounded import Rows
from ironwork_audit.report.entry import Entry

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
REQUEST: Final = "WithKey"
_ADMIN: Final = frozenset({"AddKey", "DeleteKey", "ListMasked"})


@dataclass(slots=True)
class Use:
    """Requests and tokens of one thing. Times: ms since 1970."""

    completed: int = 0
    failed: int = 0
    refused: int = 0
    input: int = 0
    output: int = 0
    cache_write: int = 0
    cache_read: int = 0
    first_ms: int = 0
    last_ms: int = 0
    mask: str = ""

    @property
    def requests(self) -> int:
        return self.completed + self.failed + self.refused

    @property
    def tokens(self) -> int:
        return self.input + self.output + self.cache_write + self.cache_read

    def take(self, entry: Entry) -> None:
        """One Claude request's end."""
        if entry.phase == EVENT:
            self.refused += entry.count
        elif entry.success:
            self.completed += 1
        else:
            self.failed += 1
        self.input += entry.tokens[0]
        self.output += entry.tokens[1]
        self.cache_write += entry.tokens[2]
        self.cache_read += entry.tokens[3]
        self.first_ms = self.first_ms or entry.time_ms
        self.last_ms = max(self.last_ms, entry.time_ms)
        self.mask = entry.mask or self.mask


@dataclass(slots=True)
class Tally:
    """How often, and when last. ok: of those, how many went well."""

    count: int = 0
    ok: int = 0
    last_ms: int = 0

    def take(self, entry: Entry) -> None:
        self.count += entry.count
        self.ok += entry.count if entry.success else 0
        self.last_ms = max(self.last_ms, entry.time_ms)


@dataclass(slots=True)
class Usage:
    """All counts of a period, entry by entry. bucket_ms: width of the time line's bars."""

    start_ms: int
    bucket_ms: int
    total: Use = field(default_factory=Use)
    by_pair: Rows[tuple[str, str, str], Use] = field(default_factory=lambda: Rows(Use))
    by_workspace: Rows[str, Use] = field(default_factory=lambda: Rows(Use))
    buckets: Rows[int, Use] = field(default_factory=lambda: Rows(Use))
    # Monday 00:00 is 0, by UTC.
    hours: list[int] = field(default_factory=lambda: [0] * 168)
    refusals: Rows[tuple[str, str], Tally] = field(default_factory=lambda: Rows(Tally))
    refused_principals: Rows[tuple[str, str], set[str]] = field(default_factory=lambda: Rows(set))
    hsm: Rows[tuple[str, str, str, str], Tally] = field(default_factory=lambda: Rows(Tally))
    admin: Rows[tuple[str, str], Tally] = field(default_factory=lambda: Rows(Tally))
    entries: int = 0

    def take(self, entry: Entry) -> None:
        """The next entry of the period."""
        self.entries += 1
        if entry.phase not in {OUTCOME, EVENT}:
            return
        if entry.success is False:
            kind = entry.operation, entry.reason or "(no reason given)"
            self.refusals[kind].take(entry)
            who = self.refused_principals[kind]
            if entry.principal and len(who) < 1000:
                who.add(entry.principal)
        if entry.operation == REQUEST:
            self._request(entry)
        elif entry.operation.startswith("hsm.") and entry.phase == OUTCOME:
            backend = str(entry.details.get("backend", ""))
            mechanism = str(entry.details.get("mechanism", ""))
            version = str(entry.details.get("master_key_version", ""))
            self.hsm[entry.operation, mechanism, version, backend].take(entry)
        elif entry.operation in _ADMIN:
            self.admin[entry.principal, entry.operation].take(entry)

    def _request(self, entry: Entry) -> None:
        for use in (
            self.total,
            self.by_pair[entry.principal, entry.workspace, entry.key_id],
            self.by_workspace[entry.workspace],
            self.buckets[(entry.time_ms - self.start_ms) // self.bucket_ms],
        ):
            use.take(entry)
        # 1970-01-01 was a Thursday.
        self.hours[(entry.time_ms // HOUR_MS + 72) % 168] += entry.count
