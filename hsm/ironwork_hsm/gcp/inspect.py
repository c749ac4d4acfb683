"""What Google Cloud KMS tells of a key, and of what these credentials may do with it, without using
it: TestIamPermissions, which every caller may ask, and GetCryptoKey, which needs a viewer.

https://cloud.google.com/kms/docs/reference/permissions-and-roles
"""

from dataclasses import replace

import grpc
from google.cloud.kms_v1 import CryptoKey, CryptoKeyVersion, GetCryptoKeyRequest

from ironwork_hsm.gcp.caller import Caller, Client
from ironwork_hsm.gcp.uri import SCHEME, parse_gcp_uri
from ironwork_hsm.interface import BackendOptions, ConfigurationError
from ironwork_hsm.kms_report import KmsReport

_VERSIONS = "cloudkms.cryptoKeyVersions."
ENCRYPT, DECRYPT = f"{_VERSIONS}useToEncrypt", f"{_VERSIONS}useToDecrypt"
# What a server needs; and what else it might have been given, in the order of its weight.
NEEDED = (ENCRYPT, DECRYPT)
FURTHER = (
    "cloudkms.cryptoKeys.setIamPolicy",
    f"{_VERSIONS}destroy",
    f"{_VERSIONS}update",
    "cloudkms.cryptoKeys.update",
    f"{_VERSIONS}create",
)
_READ = "cloudkms.cryptoKeys.get"
_State = CryptoKeyVersion.CryptoKeyVersionState


async def inspect_gcp_key(
    uri: str, *, options: BackendOptions | None = None, channel: grpc.aio.Channel | None = None
) -> KmsReport:
    """The key at uri. Raises ConfigurationError, KeyMissing, Unavailable. channel: for tests, as in
    open_gcp_kms.
    """
    key, chosen = parse_gcp_uri(uri), options or BackendOptions()
    caller = Caller(chosen, channel=channel)
    try:
        await caller.open()
        allowed = await caller.call(
            lambda client, timeout: _allowed(client, key, timeout),
            deadline_s=chosen.slow_deadline_s,
        )
        report = KmsReport(
            name=f"{SCHEME}://{key}",
            place=key.split("/")[3],
            lasting=caller.credentials_last,
            allowed=allowed,
            needed=NEEDED,
            further=FURTHER,
        )
        if _READ not in allowed:
            return report
        told = await caller.call(
            lambda client, timeout: client.get_crypto_key(
                GetCryptoKeyRequest(name=key), retry=None, timeout=timeout
            ),
            deadline_s=chosen.slow_deadline_s,
        )
    finally:
        await caller.close()
    return _described(report, told)


async def _allowed(client: Client, key: str, timeout: float) -> frozenset[str]:
    """None of a key that is not there: Google answers with an empty list, not with NOT_FOUND."""
    request = {"resource": key, "permissions": [*NEEDED, *FURTHER, _READ]}
    answer = await client.test_iam_permissions(request, retry=None, timeout=timeout)
    return frozenset(answer.permissions)


def _described(report: KmsReport, key: CryptoKey) -> KmsReport:
    if key.purpose != CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT:
        raise ConfigurationError(
            "The key in Google Cloud KMS must be symmetric, for encryption (ENCRYPT_DECRYPT)."
        )
    primary = key.primary
    return replace(
        report,
        kind=primary.protection_level.name if primary.name else "",
        state=f"primary version {primary.state.name}" if primary.name else "no primary version",
        usable=bool(primary.name) and primary.state == _State.ENABLED,
        imported=bool(primary.import_job),
    )
