"""What a master-key backend does, and its errors. The server knows only this.

Optional abilities (creating and destroying versions) are protocols of their own beside KeyWrapper,
so that a backend offers what its device can do. A Signer is another key, in a token and under a
PIN of its own: it signs the audit log's checkpoints.

HsmError
├── ConfigurationError   the URI or a file it names is wrong; starting again will not help
├── PinRefused           the token refused the PIN; never tried again by itself
├── KeyMissing           no master key with that name or version
├── MechanismRefused     the device does not offer the mechanism just tried; check() tries the next
├── BlobRejected         this blob does not open in this context (moved, altered, or another key's)
└── Unavailable          the device does not answer, or answered with a fault; worth another try
    └── Busy             the device is sound, but this caller asks more than it may: a rate, a queue
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol, runtime_checkable


class HsmError(Exception):
    """Base. Its text is ours: never a library's, never a PIN."""


class ConfigurationError(HsmError): ...


class PinRefused(HsmError): ...


class KeyMissing(HsmError): ...


class MechanismRefused(HsmError): ...


class BlobRejected(HsmError): ...


class Unavailable(HsmError): ...


class Busy(Unavailable): ...


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key under a master key.

    backend: the wrapper's name. key_version: from 1. mechanism: what made the blob, such as
    `aes-256-gcm`. blob: the mechanism's own layout, documented there.
    """

    backend: str
    key_version: int
    mechanism: str
    blob: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """One version of the master key, with its attributes as the device reports them.

    mechanism: what it wraps with; empty where it cannot (a pinned mechanism needs another kind).
    """

    version: int
    label: str
    sensitive: bool
    extractable: bool
    never_extractable: bool
    local: bool
    mechanism: str = ""


class KeyWrapper(Protocol):
    """Wraps data keys under a master key that never leaves its device. Safe for concurrent use.

    Which version wraps is said with each call, and nothing of it is kept: several callers, of
    several stores, may share one backend. Not told, it is the newest that the backend has seen.
    """

    @property
    def name(self) -> str:
        """Identifies the master key: the URI's path, without query or credentials."""

    @property
    def current_version(self) -> int:
        """The newest version that it has seen: what wrap and check use unless they are told."""

    @property
    def mechanism(self) -> str:
        """What wrap uses with current_version."""

    async def mechanism_of(self, version: int) -> str:
        """What wrap uses with this version, which is looked for where it has not been seen. Raises
        KeyMissing, ConfigurationError, Unavailable.
        """

    async def wrap(
        self,
        data_key: bytes | bytearray,
        context: bytes,
        *,
        version: int | None = None,
        reference: str = "",
    ) -> WrappedKey:
        """Wrap 32 bytes. The blob opens only with the same context, name, version and mechanism.
        Raises KeyMissing, Unavailable.

        version: None for current_version. reference: the caller's correlation id (at most 64
        visible ASCII characters), for a backend that keeps a record of its own, such as the HSM
        process; others ignore it.
        """

    async def unwrap(
        self, wrapped: WrappedKey, context: bytes, *, reference: str = ""
    ) -> bytearray:
        """The 32 bytes; the caller wipes them. Raises BlobRejected, KeyMissing, Unavailable."""

    async def versions(self) -> Sequence[KeyVersion]:
        """All versions, oldest first."""

    async def check(self, version: int | None = None) -> None:
        """A real round trip with this version (None: current_version); raises what is wrong. For
        start-up, health, and before a version is switched on.

        Exactly one round trip, so that the caller can put each on record. Where the device does
        not offer the mechanism, and there is another to try, raises MechanismRefused:
        `mechanism_of` tells the other one from now on, for the caller to check in its turn.
        """

    async def close(self) -> None: ...


@runtime_checkable
class FrontsKeys(Protocol):
    """A backend that unwraps for several master keys (the HSM process). Found by isinstance."""

    @property
    def names(self) -> frozenset[str]:
        """The names of all of them, `name` included: unwrap takes what any of them wrapped."""


@runtime_checkable
class Recoverable(Protocol):
    """A backend that can open its device anew after a fault. Found by isinstance."""

    @property
    def name(self) -> str:
        """See KeyWrapper.name."""

    async def recover(self) -> None:
        """Open the device anew, once; for when check() fails, and at the caller's pace.

        Spends at most one try of the PIN, and none where its file holds what the token refused.
        Raises ConfigurationError, PinRefused, Unavailable.
        """


@runtime_checkable
class KeyCreator(Protocol):
    """A backend that can generate master keys inside its device. Found by isinstance."""

    async def create_version(self) -> KeyVersion:
        """Generate the next version (the first is 1) in the device; it is current_version from
        then on. Raises ConfigurationError, PinRefused, Unavailable.
        """


@runtime_checkable
class VersionDestroyer(Protocol):
    """A backend that can destroy versions of the master key. Found by isinstance."""

    async def destroy_version(self, version: int, *, admin_pin_source: str) -> None:
        """Destroy one version for good: what it wraps opens no more. Never current_version.

        admin_pin_source: where the separate administrator's PIN is, as `pin-source` of RFC 7512
        (`file:/…`); empty where the device has roles of its own (a cloud KMS). Raises
        ConfigurationError, PinRefused, KeyMissing, Unavailable.
        """


@runtime_checkable
class KeptElsewhere(Protocol):
    """A backend whose versions are made and destroyed by commands of the process that holds its
    device, never from here. Found by isinstance.
    """

    @property
    def create_command(self) -> str:
        """What an operator runs there for the next version."""

    def destroy_command(self, backend: str, version: int) -> str:
        """What an operator runs there to destroy a version of this master key, one of `names`."""


class SignatureAlgorithm(StrEnum):
    """What a checkpoint may be signed with."""

    ED25519 = "ed25519"
    ECDSA_P256 = "ecdsa-p256"


# What one signature is over, at most.
MAX_MESSAGE_BYTES: Final = 65536


class Signer(Protocol):
    """Signs with a key that never leaves its device. Safe for concurrent use."""

    @property
    def name(self) -> str:
        """Identifies the key: the URI's path, without query or credentials."""

    @property
    def algorithm(self) -> SignatureAlgorithm: ...

    @property
    def public_key(self) -> bytes:
        """Ed25519: the 32 bytes of RFC 8032. ECDSA: the DER SubjectPublicKeyInfo (RFC 5480)."""

    async def sign(self, message: bytes, *, reference: str = "") -> bytes:
        """Ed25519: the 64 bytes of RFC 8032. ECDSA: over SHA-256 of message, DER (RFC 3279 2.2.3).
        message: at most MAX_MESSAGE_BYTES; ValueError for more.

        Exactly one operation in the device. Raises KeyMissing, Unavailable.
        """

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """How a backend is run. The defaults are right for a local token.

    lanes: calls that may be inside the device at once. queue: calls that may wait for a lane;
    one more is refused as busy. deadline_s: seconds for wrap, unwrap, versions and check, waiting
    included, and for close. slow_deadline_s: seconds for opening and for generating a key.
    """

    lanes: int = 4
    queue: int = 256
    deadline_s: float = 3.0
    slow_deadline_s: float = 20.0
