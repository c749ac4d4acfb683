"""The HSM operations of our logs: each intent of `hsm.*` with its outcome."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ironwork_audit.event import INTENT, OUTCOME
from ironwork_audit.parse import NotAnEvent, Summary, summarize_with_document
from ironwork_audit.reconcile.calls import MAX_CALLS, NotARecord
from ironwork_audit.select import BadEntry

# Canonical JSON, so this stands in each such entry, and text of a caller's cannot imitate it (its
# quotes would be escaped); what is found by it is then parsed.
_HSM: Final = b'"event_code":"hsm.'
_DETAILS: Final = ("backend", "mechanism", "purpose")


@dataclass(slots=True)
class Step:
    """One operation. Times in milliseconds since 1970; end_ms, success and reason are None and ''
    where no outcome is on record. backend, mechanism, purpose: '' where the entry does not say.
    """

    origin: str
    index: int
    operation: str
    correlation_id: str
    start_ms: int
    backend: str = ""
    mechanism: str = ""
    purpose: str = ""
    key_id: str = ""
    principal: str = ""
    end_ms: int | None = None
    success: bool | None = None
    reason: str = ""

    @property
    def place(self) -> str:
        """Where it stands, for people."""
        return f"{self.origin} entry {self.index}"


class StepReader:
    """Collects the steps of one log. Raises BadEntry where entries do not fit each other."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._by_intent: dict[int, Step] = {}
        self.origin = ""

    def take(self, index: int, entry: bytes) -> None:
        """The next entry. Raises BadEntry; NotARecord for more than can be held."""
        if _HSM not in entry:
            return
        try:
            summary, document = summarize_with_document(entry)
            unmapped, metadata = document["unmapped"], document["metadata"]
            details = {name: str(unmapped.get(name, "")) for name in _DETAILS}
            correlation_id = str(metadata["correlation_uid"])
            reason = str(document.get("status_detail", ""))
        except (NotAnEvent, KeyError, TypeError, AttributeError) as error:
            what = str(error) if isinstance(error, NotAnEvent) else "a member is missing"
            raise BadEntry(f"entry {index}: {what}") from None
        if not summary.operation.startswith("hsm."):
            return
        self.origin = summary.origin
        if summary.phase == INTENT:
            if len(self.steps) >= MAX_CALLS:
                raise NotARecord(f"more than {MAX_CALLS} HSM operations; give a shorter period")
            self._begin(index, summary, correlation_id, details)
        elif summary.phase == OUTCOME:
            self._end(index, summary, reason, details)

    def _begin(
        self, index: int, summary: Summary, correlation_id: str, details: dict[str, str]
    ) -> None:
        step = Step(
            origin=summary.origin,
            index=index,
            operation=summary.operation,
            correlation_id=correlation_id,
            start_ms=summary.time_ms,
            key_id=summary.key_id,
            principal=summary.principal,
            backend=details["backend"],
            mechanism=details["mechanism"],
            purpose=details["purpose"],
        )
        self.steps.append(step)
        self._by_intent[index] = step

    def _end(self, index: int, summary: Summary, reason: str, details: dict[str, str]) -> None:
        intent = -1 if summary.intent_index is None else summary.intent_index
        step = self._by_intent.pop(intent, None)
        if step is None or step.operation != summary.operation:
            raise BadEntry(
                f"entry {index}: an outcome of {summary.operation} without its intent before it: "
                "one was taken out, or the log was cut at its front"
            )
        step.end_ms = max(summary.time_ms, step.start_ms)
        step.success, step.reason = summary.success, reason
        # A generated key is known only when it is there.
        for name, value in details.items():
            if value and not getattr(step, name):
                setattr(step, name, value)


def steps_of(entries: Iterable[tuple[int, bytes]]) -> list[Step]:
    """The steps of one log's entries, given by index. Raises BadEntry, NotARecord, Unreadable."""
    reader = StepReader()
    for index, entry in entries:
        reader.take(index, entry)
    return reader.steps
