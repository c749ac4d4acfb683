"""What the report looks at of an entry."""

from dataclasses import dataclass
from typing import Any, Final

from ironwork_audit.event import EVENT
from ironwork_audit.parse import NotAnEvent, Summary, summarize_with_document
from ironwork_audit.select import BadEntry

_TOKENS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. time_ms: since 1970. count: how many it stands for (refusals may be counted).
    tokens: input, output, cache writes, cache reads.
    """

    origin: str
    index: int
    time_ms: int
    phase: str
    operation: str
    workspace: str
    key_id: str
    principal: str
    success: bool | None
    intent_index: int | None
    reason: str
    mask: str
    agent: str
    task: str
    count: int
    tokens: tuple[int, int, int, int]
    details: dict[str, Any]

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.origin} entry {self.index}"


def entry_of(index: int, data: bytes) -> Entry:
    """The entry. Raises BadEntry."""
    try:
        summary, document = summarize_with_document(data)
        details: dict[str, Any] = document["unmapped"]
        tokens = tuple(_number(details.get(name)) for name in _TOKENS)
        return Entry(
            origin=summary.origin,
            index=index,
            time_ms=summary.time_ms,
            phase=summary.phase,
            operation=summary.operation,
            workspace=summary.workspace,
            key_id=summary.key_id,
            principal=summary.principal,
            success=summary.success,
            intent_index=summary.intent_index,
            reason=str(document.get("status_detail", "")),
            mask=str(details.get("key_mask", "")),
            agent=str(details.get("agent", "")),
            task=str(details.get("task", "")),
            count=_count(summary, details),
            tokens=(tokens[0], tokens[1], tokens[2], tokens[3]),
            details=details,
        )
    except (NotAnEvent, KeyError, TypeError, AttributeError) as error:
        what = str(error) if isinstance(error, NotAnEvent) else "a member is missing"
        raise BadEntry(f"entry {index}: {what}") from None


def _count(summary: Summary, details: dict[str, Any]) -> int:
    """Refusals beyond a rate are one entry with their number; elsewhere `count` is of other things
    (a tree's size, intents left open).
    """
    counted = summary.phase == EVENT and summary.success is False
    return max(_number(details.get("count"), 1), 1) if counted else 1


def _number(value: object, default: int = 0) -> int:
    return value if type(value) is int and value >= 0 else default
