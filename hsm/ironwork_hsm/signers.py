"""Opens and creates the signing key that a URI names. One mapping says which schemes there are.

The audit log's key: in a token and under a PIN of its own, apart from the master key's.
"""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from ironwork_hsm.interface import BackendOptions, ConfigurationError, SignatureAlgorithm, Signer


class Opener(Protocol):
    """Opens a signing key of one scheme. It imports its device library itself, when called."""

    def __call__(
        self, uri: str, *, allow_missing: bool, options: BackendOptions
    ) -> Awaitable[Signer]: ...


class Creator(Protocol):
    """Generates a signing key of one scheme inside its device."""

    def __call__(
        self, uri: str, *, algorithm: SignatureAlgorithm | None, options: BackendOptions
    ) -> Awaitable[Signer]: ...


@dataclass(frozen=True, slots=True)
class _Scheme:
    open: Opener
    create: Creator


async def _open_pkcs11(uri: str, *, allow_missing: bool, options: BackendOptions) -> Signer:
    from ironwork_hsm.pkcs11.signer import open_pkcs11_signer

    return await open_pkcs11_signer(uri, allow_missing=allow_missing, options=options)


async def _create_pkcs11(
    uri: str, *, algorithm: SignatureAlgorithm | None, options: BackendOptions
) -> Signer:
    from ironwork_hsm.pkcs11.signer import create_pkcs11_signing_key

    return await create_pkcs11_signing_key(uri, algorithm=algorithm, options=options)


async def _open_gcp(uri: str, *, allow_missing: bool, options: BackendOptions) -> Signer:
    try:
        from ironwork_hsm.gcp.signer import open_gcp_signer
    except ImportError:
        raise ConfigurationError(
            "Google Cloud KMS needs google-cloud-kms: install ironwork-hsm[gcp]."
        ) from None

    return await open_gcp_signer(uri, allow_missing=allow_missing, options=options)


async def _create_elsewhere(
    uri: str, *, algorithm: SignatureAlgorithm | None, options: BackendOptions
) -> Signer:
    raise ConfigurationError(
        "A signing key in a cloud is its owner's to make, with the cloud's own tools."
    )


async def _open_unix(uri: str, *, allow_missing: bool, options: BackendOptions) -> Signer:
    from ironwork_hsm.remote import open_unix_signer

    return await open_unix_signer(uri, allow_missing=allow_missing, options=options)


async def _create_unix(
    uri: str, *, algorithm: SignatureAlgorithm | None, options: BackendOptions
) -> Signer:
    raise ConfigurationError(
        "The HSM process makes no keys for its clients. On its side: ironwork-hsmd audit-key create"
        " --signer"
    )


# A further kind of signer is one line here.
_SCHEMES: Mapping[str, _Scheme] = MappingProxyType(
    {
        "pkcs11": _Scheme(_open_pkcs11, _create_pkcs11),
        "gcpkms": _Scheme(_open_gcp, _create_elsewhere),
        "unix": _Scheme(_open_unix, _create_unix),
    }
)


async def open_signer(
    uri: str, *, allow_missing: bool = False, options: BackendOptions | None = None
) -> Signer:
    """Open and log in to the signing key that uri names and read its public key; makes no
    signature. The caller closes it.

    allow_missing: open also where there is no such key yet; what needs it raises KeyMissing.
    Raises ConfigurationError, PinRefused, KeyMissing, Unavailable; none repeats the URI's query.
    """
    scheme = _scheme(uri)
    return await scheme.open(uri, allow_missing=allow_missing, options=options or BackendOptions())


async def create_signing_key(
    uri: str,
    *,
    algorithm: SignatureAlgorithm | None = None,
    options: BackendOptions | None = None,
) -> Signer:
    """Generate the key inside its device (sensitive, never extractable, for signing only) and open
    it; the caller closes it.

    algorithm: None takes Ed25519 where the device has it, else ECDSA P-256. Raises
    ConfigurationError (also where there is such a key: it is never replaced), PinRefused,
    Unavailable.
    """
    scheme = _scheme(uri)
    return await scheme.create(uri, algorithm=algorithm, options=options or BackendOptions())


def _scheme(uri: str) -> _Scheme:
    name, colon, _ = uri.partition(":")
    scheme = _SCHEMES.get(name.lower()) if colon else None
    if scheme is None:
        raise ConfigurationError(
            "The signing key's URI has a scheme that this build does not know; it knows "
            + ", ".join(f"`{known}:`" for known in _SCHEMES)
            + "."
        )
    return scheme
