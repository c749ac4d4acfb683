"""The one place where a failure of AWS KMS becomes one of ours.

Decided on AWS's error codes, HTTP status and botocore's classes, never on text; of the foreign
error only its code is told where it is on these lists, and else its class.
"""

from http import HTTPStatus

import botocore.exceptions as boto
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from ironwork_hsm.interface import (
    BlobRejected,
    Busy,
    ConfigurationError,
    HsmError,
    KeyMissing,
    Unavailable,
)


class BrokenAnswer(Exception):
    """An answer of success without its fields: cut short, or not AWS's. botocore lets it pass."""


# https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html and the errors of Encrypt,
# Decrypt and DescribeKey.
_REJECTED = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})
_DENIED = frozenset({"AccessDeniedException", "AccessDenied", "NotAuthorized"})
_CREDENTIALS = frozenset(
    {
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "IncompleteSignature",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "OptInRequired",
    }
)
_EXPIRED = frozenset(
    {"ExpiredTokenException", "ExpiredToken", "RequestExpired", "RequestTimeTooSkewed"}
)
_STATE = frozenset({"DisabledException", "KMSInvalidStateException"})
_USAGE = frozenset(
    {"InvalidKeyUsageException", "InvalidArnException", "UnsupportedOperationException"}
)
_THROTTLED = frozenset(
    {
        "ThrottlingException",
        "Throttling",
        "RequestLimitExceeded",
        "TooManyRequestsException",
        "LimitExceededException",
    }
)
_PASSING = frozenset(
    {
        "KMSInternalException",
        "DependencyTimeoutException",
        "KeyUnavailableException",
        "InternalFailure",
        "ServiceUnavailable",
        "ServiceUnavailableException",
    }
)
_CODES: tuple[tuple[frozenset[str], type[HsmError], str], ...] = (
    (_REJECTED, BlobRejected, "The wrapped key does not open in this context."),
    (
        _DENIED,
        ConfigurationError,
        "AWS KMS denies the use of the key: allow kms:Encrypt, kms:Decrypt and kms:DescribeKey on "
        "it to the role that this process runs under, under every encryption context.",
    ),
    (frozenset({"NotFoundException"}), KeyMissing, "AWS KMS knows no such key in this region."),
    (_CREDENTIALS, ConfigurationError, "AWS does not accept the credentials it was shown."),
    (_EXPIRED, Unavailable, "The AWS credentials have expired, or this machine's clock is off."),
    (_STATE, Unavailable, "The KMS key is disabled or scheduled for deletion; enable it again."),
    (_USAGE, ConfigurationError, "The KMS key is no symmetric key for encryption."),
    # The key is sound: that we ask for too much must not make health fail.
    (_THROTTLED, Busy, "AWS KMS throttles us: its quota of requests is used up."),
    (_PASSING, Unavailable, "AWS KMS answered with a fault of its own."),
)
# Most specific first.
_CLASSES: tuple[tuple[tuple[type[Exception], ...], type[HsmError], str], ...] = (
    (
        (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound),
        ConfigurationError,
        "AWS's default chain found no credentials: give this process a role.",
    ),
    (
        (boto.NoRegionError, boto.InvalidRegionError),
        ConfigurationError,
        "No AWS region: add ?region=… to the key's URI, or name the key by its ARN.",
    ),
    (
        (boto.ConfigNotFound, boto.ConfigParseError),
        ConfigurationError,
        "AWS's own configuration file cannot be read.",
    ),
    (
        (boto.CredentialRetrievalError, boto.TokenRetrievalError, boto.MetadataRetrievalError),
        Unavailable,
        "AWS's source of credentials did not answer.",
    ),
    (
        (boto.ReadTimeoutError, boto.ConnectTimeoutError),
        Unavailable,
        "AWS KMS did not answer in time.",
    ),
    (
        (
            boto.ConnectionError,
            boto.HTTPClientError,
            boto.IncompleteReadError,
            HTTPError,
            BrokenAnswer,
        ),
        Unavailable,
        "AWS KMS cannot be reached, or the connection broke.",
    ),
)
# What a repeat may mend: nothing was decided about the request.
_REPEATED = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    HTTPError,
    BrokenAnswer,
    # Answers that are not what AWS sends: a gateway's page, or bytes that are no text.
    ResponseParserError,
    UnicodeDecodeError,
)


def code_of(error: Exception) -> str:
    """AWS's error code, or "" where it is none of AWS's answers."""
    if not isinstance(error, boto.ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", ""))


def is_passing(error: Exception) -> bool:
    """Whether the same request may well succeed in a moment."""
    if isinstance(error, boto.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return code_of(error) in _THROTTLED | _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return isinstance(error, _REPEATED) and not isinstance(error, boto.SSLError)


def is_ambiguous(error: Exception) -> bool:
    """Whether a Decrypt that failed so may be the blob's fault as well as the key's. A denial is
    not: policies may allow some encryption contexts and deny others, so a known value that passes
    does not show that the blob is wrong.
    """
    return code_of(error) == "NotFoundException"


def translate(error: Exception) -> HsmError:
    """Our error for any exception. The result carries no context: raise it as it is."""
    if isinstance(error, HsmError):
        return error
    code = code_of(error)
    for codes, ours, sentence in _CODES:
        if code in codes:
            return ours(f"{sentence} ({code})")
    for kinds, ours, sentence in _CLASSES:
        if isinstance(error, kinds):
            return ours(f"{sentence} ({type(error).__name__})")
    return Unavailable(f"AWS KMS failed unexpectedly. ({type(error).__name__})")
