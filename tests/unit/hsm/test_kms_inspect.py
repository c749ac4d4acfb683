"""What each cloud tells of a key without its being used, and of what may be done with it."""

from typing import Any

import grpc
import pytest

from fixtures.aws import REGION, AwsKms, answer, change
from fixtures.gcp import KEY, MAY_USE, Fault, GcpKms, State
from ironwork_hsm import ConfigurationError, HsmError, KeyMissing, Unavailable
from ironwork_hsm.aws.inspect import inspect_aws_key
from ironwork_hsm.backends import inspect_service
from ironwork_hsm.gcp.inspect import DECRYPT, ENCRYPT, FURTHER, inspect_gcp_key
from ironwork_hsm.kms_report import KmsReport

URI = f"gcpkms://{KEY}"


async def aws(kms: AwsKms, uri: str) -> KmsReport:
    return await inspect_aws_key(uri, endpoint_url=kms.url)


async def gcp(kms: GcpKms, uri: str = URI) -> KmsReport:
    return await inspect_gcp_key(uri, channel=kms.channel())


async def test_aws_is_asked_one_question(aws_kms: AwsKms) -> None:
    """DescribeKey tells state, kind and region; the key is not used, and what may be done with it
    is not known.
    """
    uri = aws_kms.make_uri()
    report = await aws(aws_kms, uri)
    assert (report.name, report.place, report.state) == (uri, REGION, "Enabled")
    assert report.usable is True
    assert report.allowed is None
    assert not report.imported
    assert aws_kms.front.operations() == ["DescribeKey"]


@pytest.mark.parametrize("state", ["Disabled", "PendingDeletion", "PendingImport", "Unavailable"])
async def test_an_aws_key_in_another_state_is_not_usable(aws_kms: AwsKms, state: str) -> None:
    """Only an enabled key can be used."""
    aws_kms.front.next.append(change(KeyMetadata=lambda told: told | {"KeyState": state}))
    report = await aws(aws_kms, aws_kms.make_uri())
    assert (report.state, report.usable) == (state, False)


async def test_imported_material_is_told(aws_kms: AwsKms) -> None:
    """Material that was imported was elsewhere before, and may end by itself."""
    imported = {"Origin": "EXTERNAL", "ValidTo": 1893456000.0}
    aws_kms.front.next.append(change(KeyMetadata=lambda told: told | imported))
    report = await aws(aws_kms, aws_kms.make_uri())
    assert (report.imported, report.expires) == (True, True)


async def test_aws_credentials_that_last(aws_kms: AwsKms, monkeypatch: pytest.MonkeyPatch) -> None:
    """An access key without a session token does not end by itself; a role's has one."""
    uri = aws_kms.make_uri()
    assert (await aws(aws_kms, uri)).lasting is True
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token-of-the-tests")
    assert (await aws(aws_kms, uri)).lasting is False


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("AccessDeniedException", ConfigurationError),
        ("NotFoundException", KeyMissing),
        ("UnrecognizedClientException", ConfigurationError),
        ("ExpiredTokenException", Unavailable),
    ],
)
async def test_what_aws_answers_is_ours(aws_kms: AwsKms, code: str, error: type[HsmError]) -> None:
    """AWS's refusals become our errors, without foreign text."""
    aws_kms.front.next.append(answer(400, code))
    with pytest.raises(error) as caught:
        await aws(aws_kms, aws_kms.make_uri())
    assert caught.value.__context__ is None


async def test_an_aws_key_in_another_region(aws_kms: AwsKms) -> None:
    """A key id that another region has is missing here."""
    key = aws_kms.make_key().rpartition("/")[2]
    with pytest.raises(KeyMissing, match="in this region"):
        await aws(aws_kms, f"awskms:///{key}?region=us-east-2")


async def test_an_aws_key_of_another_kind(aws_kms: AwsKms) -> None:
    """A key that signs is no master key."""
    arn = aws_kms.make_key(KeyUsage="SIGN_VERIFY", KeySpec="ECC_NIST_P256")
    with pytest.raises(ConfigurationError, match="symmetric"):
        await aws(aws_kms, f"awskms:///{arn}")


async def test_aws_that_cannot_be_reached(aws_kms: AwsKms) -> None:
    """No connection is Unavailable."""
    uri = aws_kms.make_uri()
    with pytest.raises(Unavailable):
        await inspect_aws_key(uri, endpoint_url="http://127.0.0.1:1")


async def test_google_tells_a_server_what_it_may(gcp_kms: GcpKms) -> None:
    """The smallest role: it may encrypt and decrypt, and the key's state is not its to read. The
    key is not used.
    """
    report = await gcp(gcp_kms)
    assert report.allowed == {ENCRYPT, DECRYPT}
    assert report.usable is None
    assert report.place == "europe-west3"
    assert gcp_kms.methods() == ["TestIamPermissions"]


async def test_google_tells_a_viewer_the_state(gcp_kms: GcpKms) -> None:
    """With the viewer's role the primary version's state is told."""
    gcp_kms.permissions.add("cloudkms.cryptoKeys.get")
    assert (await gcp(gcp_kms)).usable is True
    gcp_kms.versions[1].state = State.DISABLED
    report = await gcp(gcp_kms)
    assert (report.usable, report.state) == (False, "primary version DISABLED")
    gcp_kms.primary = 0
    assert (await gcp(gcp_kms)).state == "no primary version"


async def test_google_tells_of_more_than_is_needed(gcp_kms: GcpKms) -> None:
    """What the credentials could do beside encrypting is known permission by permission."""
    gcp_kms.permissions = {*MAY_USE, *FURTHER}
    assert (await gcp(gcp_kms)).allowed == {ENCRYPT, DECRYPT, *FURTHER}


@pytest.mark.parametrize("place", ["location", "key", "denied"])
async def test_google_says_nothing_of_what_is_not_there(gcp_kms: GcpKms, place: str) -> None:
    """A wrong location, a missing key and a denied one look alike: nothing is allowed."""
    uri = {
        "location": URI.replace("europe-west3", "us-east1"),
        "key": URI.replace("cryptoKeys/master", "cryptoKeys/other"),
        "denied": URI,
    }[place]
    if place == "denied":
        gcp_kms.permissions = set()
    assert (await gcp(gcp_kms, uri)).allowed == frozenset()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, ConfigurationError),
        (grpc.StatusCode.NOT_FOUND, KeyMissing),
        (grpc.StatusCode.UNAUTHENTICATED, ConfigurationError),
    ],
)
async def test_what_google_answers_is_ours(
    gcp_kms: GcpKms, code: grpc.StatusCode, error: type[HsmError]
) -> None:
    """Google's refusals become our errors, without foreign text."""
    gcp_kms.next.append(Fault(code=code))
    with pytest.raises(error) as caught:
        await gcp(gcp_kms)
    assert caught.value.__context__ is None


async def test_google_that_cannot_be_reached(gcp_kms: GcpKms) -> None:
    """No connection is Unavailable."""
    gcp_kms.lasting["TestIamPermissions"] = Fault(code=grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(Unavailable):
        await gcp(gcp_kms)


async def test_a_google_key_of_another_kind(gcp_kms: GcpKms) -> None:
    """A key that signs is no master key."""
    gcp_kms.permissions.add("cloudkms.cryptoKeys.get")

    def signs(key: Any) -> None:
        key.purpose = 5  # ASYMMETRIC_SIGN

    gcp_kms.next += [Fault(), Fault(change=signs)]
    with pytest.raises(ConfigurationError, match="symmetric"):
        await gcp(gcp_kms)


@pytest.mark.parametrize("missing", ["boto3", "google.cloud.kms_v1"])
async def test_a_library_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Without the cloud's library the error says what to install."""
    import sys

    package = "aws" if missing == "boto3" else "gcp"
    for name in list(sys.modules):
        if name.startswith(f"ironwork_hsm.{package}"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigurationError, match=rf"ironwork-hsm\[{package}\]"):
        await inspect_service(f"{package}kms:///x" if package == "aws" else URI)
