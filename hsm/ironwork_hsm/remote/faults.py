"""The HSM process' errors as fields of a frame: a code and our own text. Pure."""

from collections.abc import Sequence
from typing import Final

from ironwork_hsm.interface import (
    BlobRejected,
    Busy,
    ConfigurationError,
    HsmError,
    KeyMissing,
    MechanismRefused,
    PinRefused,
    Unavailable,
)
from ironwork_hsm.remote.codec import Malformed

MAX_ERROR_BYTES: Final = 1024

# The most specific first: Busy is an Unavailable.
_ERRORS: Final[Sequence[tuple[int, type[HsmError]]]] = (
    (1, ConfigurationError),
    (2, PinRefused),
    (3, KeyMissing),
    (4, BlobRejected),
    (7, MechanismRefused),
    (6, Busy),
    (5, Unavailable),
)


def error_fields(error: HsmError | None) -> tuple[bytes, bytes]:
    """Code and text; both empty for none."""
    if error is None:
        return b"", b""
    code = next((code for code, kind in _ERRORS if isinstance(error, kind)), 5)
    return bytes((code,)), str(error).encode("utf-8", "replace")[:MAX_ERROR_BYTES]


def read_error(code: memoryview, text: memoryview) -> HsmError:
    """The error of such fields. Raises Malformed."""
    for known, kind in _ERRORS:
        if code == bytes((known,)):
            return kind(bytes(text).decode("utf-8", "replace"))
    raise Malformed("an error's code is unknown")
