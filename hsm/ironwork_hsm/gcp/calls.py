"""Requests with every checksum, as Google asks of careful callers; and the client.

https://cloud.google.com/kms/docs/data-integrity-guidelines: a checksum goes with each field that
is sent, the answer says that it was verified, and what comes back is verified here.
"""

import asyncio
import logging
from typing import Any

import google.auth
import google_crc32c
import grpc
from google.cloud.kms_v1 import (
    AsymmetricSignRequest,
    DecryptRequest,
    Digest,
    EncryptRequest,
    GetPublicKeyRequest,
    KeyManagementServiceAsyncClient,
)
from google.cloud.kms_v1.services.key_management_service.transports import (
    KeyManagementServiceGrpcAsyncIOTransport,
)
from google.oauth2 import service_account

from ironwork_hsm.gcp.errors import ChecksumMismatch

# A constant: data keys go there. Neither GOOGLE_API_USE_MTLS_ENDPOINT nor a universe domain of the
# environment changes it.
HOST = "cloudkms.googleapis.com"
_SCOPES = ("https://www.googleapis.com/auth/cloudkms",)
_CHANNEL_OPTIONS = (
    # No proxy from the environment, and no retries but ours, which know the call's deadline.
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 1024 * 1024),
)


async def make_client(
    channel: grpc.aio.Channel | None,
) -> tuple[KeyManagementServiceAsyncClient, bool]:
    """A client with Application Default Credentials, and whether these are a key that does not end
    by itself (a service account's key file) instead of a machine's own. Raises google.auth's
    errors.

    channel: for tests, whose KMS is on loopback.
    """
    _quieten()
    lasting = False
    if channel is None:
        # In a thread: it reads files and may ask the machine's metadata service.
        credentials, _ = await asyncio.to_thread(google.auth.default, scopes=_SCOPES)
        lasting = isinstance(credentials, service_account.Credentials)
        transport = KeyManagementServiceGrpcAsyncIOTransport(
            host=HOST, credentials=credentials, channel=_make_channel
        )
    else:
        transport = KeyManagementServiceGrpcAsyncIOTransport(host=HOST, channel=channel)
    return KeyManagementServiceAsyncClient(transport=transport), lasting


async def encrypt(
    client: KeyManagementServiceAsyncClient,
    name: str,
    plaintext: bytes,
    associated: bytes,
    *,
    timeout: float,
) -> tuple[str, bytes]:
    """The name of the version that was used, and the ciphertext. Raises ChecksumMismatch and
    google.api_core's errors. name: a key's (its primary version encrypts) or a version's.
    """
    answer = await client.encrypt(
        EncryptRequest(
            name=name,
            plaintext=plaintext,
            additional_authenticated_data=associated,
            plaintext_crc32c=google_crc32c.value(plaintext),
            additional_authenticated_data_crc32c=google_crc32c.value(associated),
        ),
        retry=None,
        timeout=timeout,
    )
    if (
        not answer.verified_plaintext_crc32c
        or not answer.verified_additional_authenticated_data_crc32c
        or answer.ciphertext_crc32c != google_crc32c.value(answer.ciphertext)
    ):
        raise ChecksumMismatch
    return answer.name, answer.ciphertext


async def decrypt(
    client: KeyManagementServiceAsyncClient,
    key: str,
    ciphertext: bytes,
    associated: bytes,
    *,
    timeout: float,
) -> bytearray:
    """The plaintext, for the caller to wipe. Raises ChecksumMismatch, google.api_core's errors."""
    answer = await client.decrypt(
        DecryptRequest(
            name=key,
            ciphertext=ciphertext,
            additional_authenticated_data=associated,
            ciphertext_crc32c=google_crc32c.value(ciphertext),
            additional_authenticated_data_crc32c=google_crc32c.value(associated),
        ),
        retry=None,
        timeout=timeout,
    )
    if answer.plaintext_crc32c != google_crc32c.value(answer.plaintext):
        raise ChecksumMismatch
    return bytearray(answer.plaintext)


async def sign(
    client: KeyManagementServiceAsyncClient,
    version: str,
    message: bytes,
    *,
    hashed: bool,
    timeout: float,
) -> bytes:
    """Google's signature: DER for ECDSA. hashed: message is a SHA-256. Raises ChecksumMismatch and
    google.api_core's errors.
    """
    checksum = google_crc32c.value(message)
    request = AsymmetricSignRequest(name=version)
    if hashed:
        request.digest = Digest(sha256=message)
        request.digest_crc32c = checksum
    else:
        request.data = message
        request.data_crc32c = checksum
    answer = await client.asymmetric_sign(request, retry=None, timeout=timeout)
    verified = answer.verified_digest_crc32c if hashed else answer.verified_data_crc32c
    if (
        not verified
        or answer.name != version
        or answer.signature_crc32c != google_crc32c.value(answer.signature)
    ):
        raise ChecksumMismatch
    return bytes(answer.signature)


async def public_key_pem(
    client: KeyManagementServiceAsyncClient, version: str, *, timeout: float
) -> bytes:
    """The public key, PEM (RFC 7468). Raises ChecksumMismatch and google.api_core's errors."""
    answer = await client.get_public_key(
        GetPublicKeyRequest(name=version), retry=None, timeout=timeout
    )
    pem = answer.pem.encode("ascii")
    if answer.name != version or answer.pem_crc32c != google_crc32c.value(pem):
        raise ChecksumMismatch
    return pem


def _quieten() -> None:
    """Google's clients log requests and answers at DEBUG, and with them data keys."""
    for name in ("google", "google.cloud.kms_v1"):
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() < logging.INFO:
            logger.setLevel(logging.INFO)


def _make_channel(host: str, **arguments: Any) -> grpc.aio.Channel:
    arguments["options"] = _CHANNEL_OPTIONS
    return KeyManagementServiceGrpcAsyncIOTransport.create_channel(host, **arguments)
