"""Where Google Cloud KMS is found, under whose credentials, and how its keys are named."""

from typing import Any

import google.auth
import google.auth.exceptions as auth
import pytest
from google.auth.credentials import AnonymousCredentials

from fixtures.gcp import KEY
from ironwork_hsm import ConfigurationError, HsmError, Unavailable, open_backend
from ironwork_hsm.gcp.calls import make_client
from ironwork_hsm.gcp.errors import translate
from ironwork_hsm.gcp.uri import parse_gcp_uri, version_of


def told(error: HsmError) -> bool:
    """Whether foreign text got into our error."""
    return "told" in str(error) or error.__context__ is not None or error.__cause__ is not None


@pytest.fixture
def _anonymous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Application Default Credentials that are there, and an environment that leads elsewhere."""
    monkeypatch.setattr(google.auth, "default", lambda **_: (AnonymousCredentials(), "acme"))
    monkeypatch.setenv("GOOGLE_API_USE_MTLS_ENDPOINT", "always")
    monkeypatch.setenv("GOOGLE_CLOUD_UNIVERSE_DOMAIN", "evil.example")


@pytest.mark.usefixtures("_anonymous")
async def test_no_endpoint_from_the_environment() -> None:
    """Data keys go to Google's own endpoint, whatever variables say."""
    client, _ = await make_client(None)
    assert client.transport.host == "cloudkms.googleapis.com:443"
    await client.transport.close()


async def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Application Default Credentials the start says what is missing."""

    def none(**_: Any) -> None:
        raise auth.DefaultCredentialsError("told")

    monkeypatch.setattr(google.auth, "default", none)
    with pytest.raises(ConfigurationError, match="Application Default Credentials") as caught:
        await open_backend(f"gcpkms://{KEY}")
    assert not told(caught.value)


def test_other_failures_are_unavailable() -> None:
    """A source of credentials that fails, and anything unknown, may be back later."""
    for error in (auth.RefreshError("told"), RuntimeError("told")):
        ours = translate(error)
        assert type(ours) is Unavailable
        assert "told" not in str(ours)


@pytest.mark.parametrize(
    "text",
    [
        f"gcpkms:{KEY}",
        f"gcpkms:///{KEY}",
        f"gcpkms://{KEY}/cryptoKeyVersions/1",
        f"gcpkms://{KEY}?credentials=s3cret",
        f"gcpkms://{KEY}/",
        f"gcpkms://{KEY}\n",
        f"gcpkms://evil.example/{KEY}",
        "gcpkms://projects/a/locations/b/keyRings/../cryptoKeys/d",
    ],
)
async def test_other_uris_are_refused(text: str) -> None:
    """No endpoint, no version, no query; and the error repeats nothing of it."""
    with pytest.raises(ConfigurationError) as caught:
        await open_backend(text)
    assert "s3cret" not in str(caught.value)
    assert "evil" not in str(caught.value)


def test_uris_and_names_are_read() -> None:
    """The scheme's case does not matter; a version's number stands behind its own key's name."""
    assert parse_gcp_uri(f"GCPKMS://{KEY}") == KEY
    assert version_of(KEY, f"{KEY}/cryptoKeyVersions/12") == 12
    for name in (
        "",
        KEY,
        f"{KEY}/cryptoKeyVersions/0",
        f"{KEY}2/cryptoKeyVersions/1",
        f"{KEY}/cryptoKeyVersions/9999999999",
    ):
        assert version_of(KEY, name) is None
