"""What AWS KMS tells of a key by DescribeKey, which uses no key.

Not what may be done with it: AWS has no question for that which every role may ask. Whether
kms:Encrypt and kms:Decrypt are allowed shows when they are used.
"""

import asyncio
import time
from typing import TYPE_CHECKING

from ironwork_hsm.aws.backend import check_kind, describe
from ironwork_hsm.aws.client import credentials_last, make_client, persist
from ironwork_hsm.aws.errors import translate
from ironwork_hsm.aws.uri import AwsKmsUri, parse_aws_uri
from ironwork_hsm.interface import BackendOptions, HsmError
from ironwork_hsm.kms_report import KmsReport

if TYPE_CHECKING:
    from mypy_boto3_kms.type_defs import KeyMetadataTypeDef


async def inspect_aws_key(
    uri: str, *, options: BackendOptions | None = None, endpoint_url: str | None = None
) -> KmsReport:
    """The key at uri. Raises ConfigurationError, KeyMissing, Unavailable. endpoint_url: for tests,
    as in open_aws_kms.
    """
    parsed, chosen = parse_aws_uri(uri), options or BackendOptions()
    return await asyncio.to_thread(_inspect, parsed, chosen, endpoint_url)


def _inspect(uri: AwsKmsUri, options: BackendOptions, endpoint_url: str | None) -> KmsReport:
    """Blocks, at most about options.slow_deadline_s."""
    failure: HsmError
    try:
        client = make_client(uri.region, options, endpoint_url=endpoint_url)
        try:
            until = time.monotonic() + options.slow_deadline_s
            metadata = persist(lambda: describe(client, uri.key), until=until)
            check_kind(metadata)
            return _report(uri, client.meta.region_name, metadata)
        finally:
            client.close()
    except Exception as error:  # noqa: BLE001  the seam
        failure = translate(error)
    failure.__context__ = None
    raise failure


def _report(uri: AwsKmsUri, region: str, metadata: "KeyMetadataTypeDef") -> KmsReport:
    state = metadata.get("KeyState", "")
    origin = metadata.get("Origin", "")
    return KmsReport(
        name=uri.name,
        place=region,
        kind=f"{metadata.get('KeySpec', '')}, {origin}",
        state=state,
        usable=state == "Enabled",
        imported=origin == "EXTERNAL",
        expires="ValidTo" in metadata,
        lasting=credentials_last(),
    )
