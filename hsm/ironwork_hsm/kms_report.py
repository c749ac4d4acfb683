"""What a cloud tells of a master key without the key being used; for `ironwork-server doctor`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KmsReport:
    """One key, as its cloud describes it to the credentials of this process.

    name: as KeyWrapper.name. place: the region or location that was asked. kind: what the key is,
    in the cloud's words; empty where it may not be read. state: the cloud's word, empty likewise.
    usable: whether the key can be used in this state; None where that may not be read. imported:
    the key's material was elsewhere before. expires: the material goes by itself at some time.
    lasting: the credentials are ones that do not end by themselves. allowed: of the permissions
    that were asked about, those that these credentials have; None where a cloud cannot be asked.
    needed, further: what was asked about, as the cloud names it: what a server needs, and what
    else it might have been given.
    """

    name: str
    place: str
    kind: str = ""
    state: str = ""
    usable: bool | None = None
    imported: bool = False
    expires: bool = False
    lasting: bool = False
    allowed: frozenset[str] | None = None
    needed: tuple[str, ...] = ()
    further: tuple[str, ...] = ()
