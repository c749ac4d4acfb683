"""SPIFFE IDs, parsed strictly (the SPIFFE-ID specification, sections 2.1 to 2.3).

The parser is an allow list over the whole string: no URI library takes part, so that nothing is
decoded, normalised or forgiven on the way.
"""

import re
from dataclasses import dataclass

MAX_ID_BYTES = 2048
MAX_TRUST_DOMAIN_BYTES = 255

_SCHEME = "spiffe://"
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


class MalformedSpiffeId(ValueError):
    """The string is no SPIFFE ID. The text names the rule that it breaks, never the string."""


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """A parsed SPIFFE ID. path is empty or begins with `/`; str() gives the ID back."""

    trust_domain: str
    path: str

    @classmethod
    def parse(cls, text: str) -> "SpiffeId":
        """Parse `spiffe://trust-domain/path`. Raises MalformedSpiffeId."""
        # Every character that can follow is ASCII, so that characters count as bytes.
        if len(text) > MAX_ID_BYTES:
            raise MalformedSpiffeId(f"longer than {MAX_ID_BYTES} bytes")
        if not text.startswith(_SCHEME):
            raise MalformedSpiffeId("does not begin with spiffe:// in lower case")
        trust_domain, slash, path = text.removeprefix(_SCHEME).partition("/")
        check_trust_domain(trust_domain)
        if slash:
            for segment in path.split("/"):
                check_segment(segment)
        return cls(trust_domain, slash + path)

    @property
    def segments(self) -> tuple[str, ...]:
        """The path's segments; none for an ID that is a trust domain alone."""
        return tuple(self.path.split("/")[1:])

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}{self.path}"


def check_trust_domain(name: str) -> None:
    """Section 2.1: [a-z0-9._-], 1 to 255; no port, no user. Raises MalformedSpiffeId."""
    if not _TRUST_DOMAIN.fullmatch(name):
        raise MalformedSpiffeId(
            "the trust domain is not 1 to 255 of a-z, 0-9, dot, dash and underscore"
        )


def check_segment(segment: str) -> None:
    """Section 2.2: [A-Za-z0-9._-], not empty, not `.` or `..`. Raises MalformedSpiffeId."""
    if segment in {".", ".."}:
        raise MalformedSpiffeId("a path segment is relative")
    if not _SEGMENT.fullmatch(segment):
        raise MalformedSpiffeId(
            "a path segment is empty or has characters besides A-Z, a-z, 0-9, dot, dash and "
            "underscore"
        )
