"""The one place where a failure of Google Cloud KMS becomes one of ours.

Decided on gRPC status codes and classes, never on text.
"""

import grpc
from google.api_core import exceptions as api
from google.auth import exceptions as auth

from ironwork_hsm.interface import (
    BlobRejected,
    Busy,
    ConfigurationError,
    HsmError,
    KeyMissing,
    Unavailable,
)


class VersionUnusable(Unavailable):
    """The key has no primary version, or the version is disabled or destroyed."""


class ChecksumMismatch(Exception):
    """A CRC32C that does not fit, on either side: something was altered on its way."""


_CODES: dict[grpc.StatusCode, tuple[type[HsmError], str]] = {
    grpc.StatusCode.PERMISSION_DENIED: (
        ConfigurationError,
        "Google Cloud KMS denies this: the server's service account needs roles/cloudkms."
        "cryptoKeyEncrypterDecrypter on the key, and whoever lists versions roles/cloudkms.viewer.",
    ),
    grpc.StatusCode.UNAUTHENTICATED: (
        ConfigurationError,
        "Google does not accept the credentials it was shown.",
    ),
    grpc.StatusCode.NOT_FOUND: (KeyMissing, "Google Cloud KMS knows no such key."),
    grpc.StatusCode.FAILED_PRECONDITION: (
        VersionUnusable,
        "The key has no enabled primary version, or the version in question is disabled or "
        "destroyed.",
    ),
    grpc.StatusCode.INVALID_ARGUMENT: (
        ConfigurationError,
        "Google Cloud KMS refused the request; the key must be symmetric (ENCRYPT_DECRYPT).",
    ),
    # The key is sound: that we ask for too much must not make health fail.
    grpc.StatusCode.RESOURCE_EXHAUSTED: (
        Busy,
        "Google Cloud KMS throttles us: its quota of requests is used up.",
    ),
    grpc.StatusCode.UNAVAILABLE: (Unavailable, "Google Cloud KMS cannot be reached."),
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        Unavailable,
        "Google Cloud KMS did not answer in time.",
    ),
}
# Nothing was decided about the request: the same one may succeed in a moment.
_PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


def code_of(error: Exception) -> grpc.StatusCode | None:
    """The gRPC status code, or None where it is no answer of gRPC's."""
    if isinstance(error, api.GoogleAPICallError):
        code = error.grpc_status_code
        return code if isinstance(code, grpc.StatusCode) else None
    return error.code() if isinstance(error, grpc.aio.AioRpcError) else None


def is_passing(error: Exception) -> bool:
    """Whether the same request may well succeed in a moment."""
    return isinstance(error, ChecksumMismatch) or code_of(error) in _PASSING


def is_rejection(error: Exception) -> bool:
    """Whether a Decrypt that failed so says that ciphertext or context is wrong. A request that was
    altered on its way gets the same code, so it is asked once more.
    """
    return code_of(error) is grpc.StatusCode.INVALID_ARGUMENT


def rejected() -> BlobRejected:
    return BlobRejected("The wrapped key does not open in this context.")


def translate(error: Exception) -> HsmError:
    """Our error for any exception. Raise it outside the handler, so that it has no context."""
    if isinstance(error, HsmError):
        return error
    if isinstance(error, ChecksumMismatch):
        return Unavailable("What Google Cloud KMS and we sent each other was altered on its way.")
    if isinstance(error, auth.DefaultCredentialsError):
        return ConfigurationError(
            "Google's Application Default Credentials found none: run as a service account."
        )
    if isinstance(error, auth.GoogleAuthError):
        return Unavailable(f"Google's source of credentials failed. ({type(error).__name__})")
    code = code_of(error)
    if code in _CODES:
        ours, sentence = _CODES[code]
        return ours(f"{sentence} ({code.name})")
    named = code.name if code else type(error).__name__
    return Unavailable(f"Google Cloud KMS failed unexpectedly. ({named})")
