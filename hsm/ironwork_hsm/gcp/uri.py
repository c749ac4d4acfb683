"""Google Cloud KMS URIs, as sigstore and its kin write them, read strictly.

    gcpkms://projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY

No version (a rotation makes new ones, and the blob says which), no query: credentials come by
Application Default Credentials.
"""

import re

from ironwork_hsm.binding import MAX_VERSION
from ironwork_hsm.interface import ConfigurationError

SCHEME = "gcpkms"

_ID = r"[A-Za-z0-9_-]{1,63}"
# A project may be its number, or an id within a domain (`example.com:project`).
_PROJECT = r"(?:[a-z0-9.-]{1,63}:)?[a-z0-9-]{1,30}"
_KEY = re.compile(
    rf"projects/{_PROJECT}/locations/[a-z0-9-]{{1,63}}/keyRings/{_ID}/cryptoKeys/{_ID}"
)
_VERSION = re.compile(r"/cryptoKeyVersions/([1-9][0-9]{0,9})")


def parse_gcp_uri(text: str) -> str:
    """The key's resource name. Raises ConfigurationError, which repeats nothing of the URI."""
    start = f"{SCHEME}://"
    key = text[len(start) :]
    if text[: len(start)].lower() != start or not _KEY.fullmatch(key):
        raise ConfigurationError(
            "A Google Cloud KMS URI is gcpkms://projects/PROJECT/locations/LOCATION/keyRings/RING/"
            "cryptoKeys/KEY, without a version and without a query: credentials come by "
            "Application Default Credentials."
        )
    return key


def parse_gcp_signing_uri(text: str) -> str:
    """The resource name of a signing key's version: as above, with /cryptoKeyVersions/N behind it,
    since a log's key is one key. Raises ConfigurationError.
    """
    uri, slash, number = text.rpartition("/cryptoKeyVersions/")
    if not slash or not _VERSION.fullmatch(slash + number):
        raise ConfigurationError(
            "The URI of a signing key in Google Cloud KMS ends with /cryptoKeyVersions/N."
        )
    return parse_gcp_uri(uri) + slash + number


def version_name(key: str, version: int) -> str:
    """The resource name of one version of a key."""
    return f"{key}/cryptoKeyVersions/{version}"


def version_of(key: str, name: str) -> int | None:
    """The number in a version's resource name, or None where it is no version of this key."""
    found = _VERSION.fullmatch(name.removeprefix(key)) if name.startswith(key) else None
    return int(found[1]) if found and int(found[1]) <= MAX_VERSION else None
