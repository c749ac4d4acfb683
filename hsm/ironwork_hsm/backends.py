"""Opens the master key that a URI names. One mapping says which schemes there are."""

import contextlib
from collections.abc import Awaitable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol

from ironwork_hsm.interface import BackendOptions, ConfigurationError, KeyWrapper
from ironwork_hsm.kms_report import KmsReport


class Opener(Protocol):
    """Opens the backend of one scheme. It imports its device library itself, when called."""

    def __call__(
        self, uri: str, *, allow_missing: bool, options: BackendOptions
    ) -> Awaitable[KeyWrapper]: ...


_AWS_EXTRA = "AWS KMS needs boto3: install ironwork-hsm[aws]."
_GCP_EXTRA = "Google Cloud KMS needs google-cloud-kms: install ironwork-hsm[gcp]."


@contextlib.contextmanager
def _needs(extra: str) -> Iterator[None]:
    """An import that fails becomes the sentence that says what to install."""
    try:
        yield
    except ImportError:
        raise ConfigurationError(extra) from None


async def _open_pkcs11(uri: str, *, allow_missing: bool, options: BackendOptions) -> KeyWrapper:
    from ironwork_hsm.pkcs11 import open_pkcs11

    return await open_pkcs11(uri, allow_missing=allow_missing, options=options)


async def _open_aws(uri: str, *, allow_missing: bool, options: BackendOptions) -> KeyWrapper:
    with _needs(_AWS_EXTRA):
        from ironwork_hsm.aws import open_aws_kms

    return await open_aws_kms(uri, allow_missing=allow_missing, options=options)


async def _open_gcp(uri: str, *, allow_missing: bool, options: BackendOptions) -> KeyWrapper:
    with _needs(_GCP_EXTRA):
        from ironwork_hsm.gcp import open_gcp_kms

    return await open_gcp_kms(uri, allow_missing=allow_missing, options=options)


async def _open_unix(uri: str, *, allow_missing: bool, options: BackendOptions) -> KeyWrapper:
    from ironwork_hsm.remote import open_unix

    return await open_unix(uri, allow_missing=allow_missing, options=options)


# A further backend is one line here.
_OPENERS: Mapping[str, Opener] = MappingProxyType(
    {"pkcs11": _open_pkcs11, "awskms": _open_aws, "gcpkms": _open_gcp, "unix": _open_unix}
)
_SERVICES = frozenset({"awskms", "gcpkms"})


def is_service(uri: str) -> bool:
    """Whether uri's key is in a cloud, and a network between it and us."""
    return uri.partition(":")[0].lower() in _SERVICES


async def inspect_service(uri: str) -> KmsReport:
    """What a cloud tells of its key at uri, which is not used for it. Raises ConfigurationError,
    KeyMissing, Unavailable.
    """
    if uri.partition(":")[0].lower() == "awskms":
        with _needs(_AWS_EXTRA):
            from ironwork_hsm.aws.inspect import inspect_aws_key
        return await inspect_aws_key(uri)
    with _needs(_GCP_EXTRA):
        from ironwork_hsm.gcp.inspect import inspect_gcp_key
    return await inspect_gcp_key(uri)


async def open_backend(
    uri: str, *, allow_missing: bool = False, options: BackendOptions | None = None
) -> KeyWrapper:
    """Open, log in and check the master key that uri names; the caller closes it.

    allow_missing: open also where the token holds no such key yet; for the command that creates
    it. Raises ConfigurationError, PinRefused, KeyMissing, Unavailable; none repeats the URI's
    query.
    """
    scheme, colon, _ = uri.partition(":")
    opener = _OPENERS.get(scheme.lower()) if colon else None
    if opener is None:
        raise ConfigurationError(
            "The master key's URI has a scheme that this build does not know; it knows "
            + ", ".join(f"`{known}:`" for known in _OPENERS)
            + "."
        )
    return await opener(uri, allow_missing=allow_missing, options=options or BackendOptions())
