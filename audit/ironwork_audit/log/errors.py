"""What keeps a log from being opened, and what keeps an open one from being written.

LogError          at the opening, for the operator
├── LogInUse      another process holds the folder
├── OriginDiffers the folder belongs to another origin
├── LogDamaged    a file is not what was written there; says which
└── LogUnusable   folder or files cannot be used: permissions, disk
WriteFailed       an open log: nothing of this write is acknowledged
"""

import errno


class LogError(Exception):
    """Base. Its text says what is wrong and how to mend it; it quotes no entry."""


class LogInUse(LogError): ...


class OriginDiffers(LogError): ...


class LogDamaged(LogError):
    """place: the file, relative to the folder, and where in it."""

    def __init__(self, place: str, what: str) -> None:
        super().__init__(
            f"the audit log is damaged at {place}: {what}. Keep the folder as evidence, "
            "restore it from a copy, or start a new folder with a new origin."
        )
        self.place = place


class LogUnusable(LogError): ...


class WriteFailed(Exception):
    """lasting: nothing may be written until the log is opened anew. what: one sentence for logs
    and health, without any entry's content.
    """

    def __init__(self, what: str, *, lasting: bool) -> None:
        super().__init__(what)
        self.what = what
        self.lasting = lasting


def error_name(error: OSError) -> str:
    """The errno's name, such as EIO."""
    return errno.errorcode.get(error.errno or 0, "unknown error")
