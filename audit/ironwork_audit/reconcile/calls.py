"""What a device, a cloud or another process says was done: one value for each operation."""

from typing import Final, NamedTuple

# Bounds on what is held in memory at once.
MAX_CALLS: Final = 5_000_000


class Call(NamedTuple):
    """One operation on record elsewhere. Holds nothing of the data that passed.

    function: as its record names it (`C_Decrypt`, `Decrypt`). subject: what must be the same in
    our entry (a mechanism, a key); '' where the record does not say. start_ms, end_ms: between
    which it was asked for, milliseconds since 1970. ok: None where the record does not say. place:
    where it stands, for people (`spy.log line 41`).
    """

    function: str
    subject: str
    start_ms: int
    end_ms: int
    ok: bool | None
    place: str


class Recorded(NamedTuple):
    """A record as a whole. ignored: size queries and what uses no key. problems: what the record
    itself shows to be wrong, such as numbers left out.
    """

    calls: list[Call]
    ignored: int
    problems: list[str]


class NotARecord(Exception):
    """This is no record of its kind. The text names the place, never what stands there."""
