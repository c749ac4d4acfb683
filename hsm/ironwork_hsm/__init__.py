"""Master keys in an HSM behind one small interface. Importing this loads no device library."""

from ironwork_hsm.interface import (
    BlobRejected,
    ConfigurationError,
    HsmError,
    KeyMissing,
    KeyVersion,
    KeyWrapper,
    PinRefused,
    Unavailable,
    WrappedKey,
)

__all__ = [
    "BlobRejected",
    "ConfigurationError",
    "HsmError",
    "KeyMissing",
    "KeyVersion",
    "KeyWrapper",
    "PinRefused",
    "Unavailable",
    "WrappedKey",
]
