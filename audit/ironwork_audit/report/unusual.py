"""What stands out, by rules that are stated beside what they found."""

from collections import Counter
from dataclasses import dataclass
from typing import Final, NamedTuple

from ironwork_audit.event import EVENT, INTENT, OUTCOME
from ironwork_audit.report.bounded import Rows, Seen
from ironwork_audit.report.entry import Entry
from ironwork_audit.report.usage import DAY_MS, HOUR_MS, REQUEST

# Cases that are shown; of what is only worth knowing, fewer.
_SHOWN: Final = {3: 20, 2: 12, 1: 6}
_MOST_OPEN: Final = 100_000
_HISTORY_DAYS: Final = 7
_SPIKE_FACTOR: Final = 5
_SPIKE_LEAST: Final = 100
_SPIKE_HOURS: Final = 24


class Kind(NamedTuple):
    """A rule. level: 3 must be looked at, 2 should be, 1 is worth knowing."""

    level: int
    title: str
    rule: str


RULES: Final[dict[str, Kind]] = {
    "restored": Kind(
        3,
        "A deleted key was there again",
        "a request was refused with KEY_WAS_DELETED: the log knows the key as deleted, and the "
        "database has it, as after restoring a backup",
    ),
    "echoed": Kind(
        3,
        "An answer held the key",
        "a response was cut with KEY_ECHOED: Anthropic's answer, or something on the way, "
        "contained the API key",
    ),
    "damaged": Kind(
        3,
        "A stored key does not open",
        "an unwrap or a request failed with KEY_RECORD_DAMAGED: the row was altered, moved or "
        "damaged",
    ),
    "organization": Kind(
        3,
        "Another Anthropic organisation",
        "a key of another organisation than the workspace's others was added on purpose: prompts "
        "go to another account from then on",
    ),
    "open": Kind(
        3,
        "Calls without an outcome",
        "an intent whose outcome is not in the log: the process was killed, or is still at it",
    ),
    "generate": Kind(2, "Master and signing keys", "a key was generated or destroyed in the HSM"),
    "hsm": Kind(
        2,
        "The HSM failed or refused",
        "an operation of the HSM failed for a reason that is not the record's",
    ),
    "journal": Kind(
        2,
        "The log had trouble",
        "the log's own events: recovered after a crash, resumed after a full disk, calls left open",
    ),
    "access": Kind(
        2,
        "Policy, certificates, trust",
        "who may do what changed, or a change was refused",
    ),
    "spike": Kind(
        2,
        "Volume out of the ordinary",
        f"a workspace had at least {_SPIKE_LEAST} requests in an hour and more than "
        f"{_SPIKE_FACTOR} times its mean over at least {_SPIKE_HOURS} earlier active hours",
    ),
    "hour": Kind(
        1,
        "An unusual hour",
        f"a workspace used a key in an hour of the day (UTC) in which it never had before, after "
        f"at least {_HISTORY_DAYS} days of use",
    ),
    "principal": Kind(
        1,
        "New principals",
        "a principal that the log had not seen before (not where the log itself begins in the "
        "period)",
    ),
    "pair": Kind(
        1,
        "First use of a key by an agent",
        "a principal used a key for the first time, and others had used that key for more than a "
        "day",
    ),
}
_JOURNAL_ROUTINE: Final = frozenset({"journal.created"})


class Finding(NamedTuple):
    """One case. text is shown as it is, escaped."""

    time_ms: int
    text: str
    place: str


@dataclass(slots=True)
class _Pace:
    """A workspace's hours."""

    first_ms: int = 0
    hour: int = -1
    in_hour: int = 0
    hours: int = 0
    total: int = 0
    told: int = -1
    of_day: int = 0


class Unusual:
    """Looks at every entry from the log's beginning, and tells what is in the period."""

    def __init__(self, start_ms: int, end_ms: int) -> None:
        self._start_ms = start_ms
        self._end_ms = end_ms
        self.found: dict[str, list[Finding]] = {}
        self.counts: Counter[str] = Counter()
        self._first_ms: int | None = None
        self._principals: Seen[str] = Seen()
        self._pairs: Seen[tuple[str, str]] = Seen()
        self._keys: Rows[str, list[int]] = Rows(lambda: [0])
        self._paces: Rows[str, _Pace] = Rows(_Pace)
        self._open: dict[tuple[str, int], Entry] = {}
        self.not_assessed: set[str] = set()

    def take(self, entry: Entry) -> None:
        """The next entry by time."""
        if self._first_ms is None:
            self._first_ms = entry.time_ms
        self._links(entry)
        if entry.principal:
            self._principal(entry)
        if entry.operation == REQUEST and entry.phase == OUTCOME and entry.key_id:
            self._pair(entry)
        if entry.operation == REQUEST and entry.phase in {OUTCOME, EVENT}:
            self._pace(entry)
        if entry.phase != INTENT:
            self._by_itself(entry)

    def settle(self, entry: Entry) -> None:
        """An entry after the period: it may be the outcome of what began in it."""
        if entry.phase == OUTCOME:
            self._links(entry)

    def finish(self) -> None:
        """After the last entry."""
        for entry in self._open.values():
            self._tell("open", entry, f"{entry.operation}{_of(entry)}")
        for name, seen in (("principal", self._principals), ("pair", self._pairs)):
            if seen.full:
                self.not_assessed.add(name)

    def _links(self, entry: Entry) -> None:
        if entry.phase == INTENT:
            if len(self._open) < _MOST_OPEN:
                self._open[entry.origin, entry.index] = entry
            else:
                self.not_assessed.add("open")
        elif entry.phase == OUTCOME and entry.intent_index is not None:
            self._open.pop((entry.origin, entry.intent_index), None)

    def _principal(self, entry: Entry) -> None:
        new = self._principals.add(entry.principal)
        if new and self._has_history():
            self._tell("principal", entry, f"{entry.principal} ({entry.operation}{_of(entry)})")

    def _has_history(self) -> bool:
        return self._first_ms is not None and self._first_ms < self._start_ms

    def _pair(self, entry: Entry) -> None:
        first = self._keys[entry.key_id]
        first[0] = first[0] or entry.time_ms
        if self._pairs.add((entry.principal, entry.key_id)) and (entry.time_ms - first[0] > DAY_MS):
            claimed = f", as {entry.agent}" if entry.agent else ""
            self._tell("pair", entry, f"{entry.principal}{_of(entry)}{claimed}")

    def _pace(self, entry: Entry) -> None:
        pace = self._paces[entry.workspace]
        hour = entry.time_ms // HOUR_MS
        pace.first_ms = pace.first_ms or entry.time_ms
        if hour > pace.hour:
            if pace.in_hour:
                pace.hours += 1
                pace.total += pace.in_hour
            pace.hour, pace.in_hour = hour, 0
        pace.in_hour += entry.count
        bit = 1 << (hour % 24)
        if not pace.of_day & bit:
            if entry.time_ms - pace.first_ms > _HISTORY_DAYS * DAY_MS:
                text = f"{entry.workspace}: {hour % 24:02}:00 to {(hour + 1) % 24:02}:00 UTC"
                self._tell("hour", entry, f"{text}, by {entry.principal}")
            pace.of_day |= bit
        mean = pace.total / pace.hours if pace.hours else 0.0
        if (
            pace.hours >= _SPIKE_HOURS
            and pace.in_hour >= _SPIKE_LEAST
            and pace.in_hour > _SPIKE_FACTOR * mean
            and pace.told != pace.hour
        ):
            pace.told = pace.hour
            self._tell(
                "spike",
                entry,
                f"{entry.workspace}: {pace.in_hour} and more requests within an "
                f"hour; its mean is {mean:.0f}",
            )

    def _by_itself(self, entry: Entry) -> None:
        operation, reason = entry.operation, entry.reason
        area = operation.partition(".")[0]
        name = {
            "KEY_WAS_DELETED": "restored",
            "KEY_ECHOED": "echoed",
            "KEY_RECORD_DAMAGED": "damaged",
        }.get(reason, "")
        if not name and area == "organization":
            name = "organization"
        elif not name and operation in {"hsm.generate", "hsm.destroy"}:
            name = "generate"
        elif not name and area == "hsm" and entry.success is False:
            name = "hsm"
        elif not name and area == "journal" and operation not in _JOURNAL_ROUTINE:
            name = "journal"
        elif not name and area in {"policy", "certificate", "trust", "identity"}:
            name = "access"
        if name:
            self._tell(name, entry, _described(entry))

    def _tell(self, name: str, entry: Entry, text: str) -> None:
        if not self._start_ms <= entry.time_ms < self._end_ms:
            return
        self.counts[name] += 1
        cases = self.found.setdefault(name, [])
        if len(cases) < _SHOWN[RULES[name].level]:
            cases.append(Finding(entry.time_ms, text, entry.place))


def _described(entry: Entry) -> str:
    parts = [entry.operation + _of(entry)]
    if entry.success is not None:
        parts.append("succeeded" if entry.success else "failed")
    if entry.reason:
        parts.append(entry.reason)
    parts += [
        f"{name.replace('_', ' ')} {entry.details[name]}"
        for name in ("mechanism", "purpose", "organization_id", "previous_organizations", "count")
        if entry.details.get(name)
    ]
    if entry.principal:
        parts.append(f"by {entry.principal}")
    return ", ".join(parts)


def _of(entry: Entry) -> str:
    if entry.key_id:
        return f" of key {entry.key_id} in {entry.workspace}"
    return f" in {entry.workspace}" if entry.workspace else ""
