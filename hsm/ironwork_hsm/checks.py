"""What every backend checks of a call before it asks its device. Pure; no device library."""

from collections.abc import Container

from ironwork_hsm.binding import DATA_KEY_BYTES, MAX_VERSION
from ironwork_hsm.interface import BlobRejected, WrappedKey


def check_data_key(data_key: bytes | bytearray) -> None:
    """Raises ValueError for what is no data key."""
    if len(data_key) != DATA_KEY_BYTES:
        raise ValueError(f"a data key has {DATA_KEY_BYTES} bytes")


def check_context(context: bytes, most: int) -> None:
    """Raises ValueError for a context of more bytes than the backend takes."""
    if len(context) > most:
        raise ValueError(f"a wrapping context has at most {most} bytes")


def check_made_by(wrapped: WrappedKey, name: str, mechanisms: Container[str]) -> None:
    """Raises BlobRejected for what the backend of this name, with these mechanisms in any version,
    cannot have made.
    """
    if wrapped.backend != name or wrapped.mechanism not in mechanisms:
        raise BlobRejected("The wrapped key was made by another backend or mechanism.")
    if not 1 <= wrapped.key_version <= MAX_VERSION:
        raise BlobRejected("The wrapped key names a version that cannot exist.")
