"""What keeps a journal from being opened. For the operator, at start-up.

JournalError
├── JournalInUse      another process holds it
├── OriginDiffers     the folder belongs to another origin
├── JournalDamaged    a line is not what was written there; says which
└── JournalUnusable   folder or file cannot be used: permissions, disk
"""


class JournalError(Exception):
    """Base. Its text says what is wrong and how to mend it; it quotes no entry."""


class JournalInUse(JournalError): ...


class OriginDiffers(JournalError): ...


class JournalDamaged(JournalError):
    """line: counted from 1; the header is line 1."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(
            f"the audit journal is damaged at line {line}: {what}. Keep the file as evidence, "
            "restore it from a copy, or start a new folder with a new origin."
        )
        self.line = line


class JournalUnusable(JournalError): ...
