"""What a check of `doctor` says."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """ok: as it should be. warn: it works, and somebody should know or decide. fail: it must be
    mended before the service is to be trusted with keys.
    """

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table. check: what was looked at. mend: what to do; empty where it is ok."""

    check: str
    status: Status
    says: str
    mend: str = ""

    def __post_init__(self) -> None:
        if (self.status is Status.OK) == bool(self.mend):
            raise ValueError(f"{self.check}: whatever is not ok, and nothing else, has a mend")


def ok(check: str, says: str) -> Finding:
    return Finding(check, Status.OK, says)


def warn(check: str, says: str, mend: str) -> Finding:
    return Finding(check, Status.WARN, says, mend)


def fail(check: str, says: str, mend: str) -> Finding:
    return Finding(check, Status.FAIL, says, mend)


def failed(findings: Iterable[Finding]) -> bool:
    """Whether any of them failed."""
    return any(finding.status is Status.FAIL for finding in findings)
