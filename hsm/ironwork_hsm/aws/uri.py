"""AWS KMS URIs, as sigstore and its kin write them, read strictly.

    awskms:///arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab
    awskms:///1234abcd-12ab-34cd-56ef-1234567890ab?region=eu-central-1
    awskms:///alias/ironwork?region=eu-central-1

Between the second and the third slash others allow an endpoint; here it stays empty, since data
keys would go there. A URI holds no credential: those come by AWS's own default chain.
"""

import re
from dataclasses import dataclass

from ironwork_hsm.interface import ConfigurationError

SCHEME = "awskms"
MAX_URI_LENGTH = 512

_REGION = r"[a-z]{2,8}(?:-[a-z0-9]{1,16}){2,4}"
_KEY_ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|mrk-[0-9a-f]{32}"
_ALIAS = r"alias/[A-Za-z0-9/_-]{1,250}"
_SHORT = re.compile(rf"{_KEY_ID}|{_ALIAS}")
_ARN = re.compile(
    rf"arn:aws[a-z-]*:kms:(?P<region>{_REGION}):[0-9]{{12}}:(?:key/(?:{_KEY_ID})|{_ALIAS})"
)
_QUERY = re.compile(rf"region=(?P<region>{_REGION})")


@dataclass(frozen=True, slots=True)
class AwsKmsUri:
    """key: key id, alias or ARN, as the API's KeyId. region: None leaves it to AWS's chain."""

    key: str
    region: str | None

    @property
    def name(self) -> str:
        """The URI without its query. It is bound into every blob."""
        return f"{SCHEME}:///{self.key}"


def parse_aws_uri(text: str) -> AwsKmsUri:
    """Read a URI. Raises ConfigurationError, which says how to mend it and repeats nothing."""
    if len(text) > MAX_URI_LENGTH:
        raise ConfigurationError(f"The AWS KMS URI is longer than {MAX_URI_LENGTH} characters.")
    start = text[: len(SCHEME) + 4]
    if start.lower() != f"{SCHEME}:///":
        raise ConfigurationError(
            "An AWS KMS URI begins with `awskms:///` (three slashes: an endpoint cannot be named)."
        )
    key, mark, query = text[len(start) :].partition("?")
    arn = _ARN.fullmatch(key)
    if arn is None and not _SHORT.fullmatch(key):
        raise ConfigurationError(
            "AWS KMS URI: after `awskms:///` stands a key's ARN, a key id or alias/NAME."
        )
    region = _region(query) if mark else None
    if arn is None:
        return AwsKmsUri(key, region)
    if region not in (None, arn["region"]):
        raise ConfigurationError("AWS KMS URI: `region` is another than the ARN's; leave it out.")
    return AwsKmsUri(key, arn["region"])


def _region(query: str) -> str:
    found = _QUERY.fullmatch(query)
    if found is None:
        raise ConfigurationError(
            "AWS KMS URI: after `?` only `region=…` may stand. Credentials come by AWS's default "
            "chain, never from here."
        )
    return found["region"]
