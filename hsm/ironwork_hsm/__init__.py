"""Master keys in an HSM behind one small interface. Importing this loads no device library."""

from ironwork_hsm.backends import open_backend
from ironwork_hsm.interface import (
    BackendOptions,
    BlobRejected,
    Busy,
    ConfigurationError,
    FrontsKeys,
    HsmError,
    KeyCreator,
    KeyMissing,
    KeyVersion,
    KeyWrapper,
    MechanismRefused,
    PinRefused,
    Recoverable,
    SignatureAlgorithm,
    Signer,
    Unavailable,
    VersionDestroyer,
    WrappedKey,
)
from ironwork_hsm.settle import MAX_TRIALS, settle

__all__ = [
    "MAX_TRIALS",
    "BackendOptions",
    "BlobRejected",
    "Busy",
    "ConfigurationError",
    "FrontsKeys",
    "HsmError",
    "KeyCreator",
    "KeyMissing",
    "KeyVersion",
    "KeyWrapper",
    "MechanismRefused",
    "PinRefused",
    "Recoverable",
    "SignatureAlgorithm",
    "Signer",
    "Unavailable",
    "VersionDestroyer",
    "WrappedKey",
    "open_backend",
    "settle",
]
