"""The HSM process in front of a cloud's KMS: it alone has the cloud's credentials."""

import asyncio
import json
import os
import signal
import time
from hashlib import sha256

import grpc
import pytest

from fixtures.clouds import ACCESS_KEY, TOKEN, Clouds
from fixtures.gcp import Fault
from fixtures.hsmd import Hsmd, MakeHsmd, entries_of
from fixtures.softhsm import SharedToken
from ironwork_hsm import BackendOptions, ConfigurationError, FrontsKeys, open_backend
from ironwork_hsm.environment import REFUSED

CONTEXT = b"workspace\x00key-7"
PATIENT = BackendOptions(deadline_s=30, slow_deadline_s=60)


@pytest.fixture
def make(clouds: Clouds, make_hsmd: MakeHsmd, shared_token: SharedToken) -> MakeHsmd:
    """make_hsmd, in the environment that finds the clouds, and with backends of theirs."""

    def made(*uris: str, env: dict[str, str] | None = None, **settings: object) -> Hsmd:
        env = clouds.env if env is None else env
        return make_hsmd(token=shared_token("clouds"), backends=list(uris), env=env, **settings)

    return made


async def test_both_clouds_behind_one_process(clouds: Clouds, make: MakeHsmd) -> None:
    """The first backend wraps and both unwrap; every operation is on record with the cloud's own
    name and mechanism, and nothing of a data key.
    """
    aws = clouds.aws.make_uri()
    both = make(aws, clouds.gcp_uri)
    other_way = make(clouds.gcp_uri, aws)
    data_key = os.urandom(32)
    remote = await open_backend(both.uri, options=PATIENT)
    second = await open_backend(other_way.uri, options=PATIENT)
    assert isinstance(remote, FrontsKeys)
    assert remote.names == {aws, clouds.gcp_uri}
    by_aws = await remote.wrap(data_key, CONTEXT, reference="by-aws")
    by_gcp = await second.wrap(data_key, CONTEXT)
    assert (by_aws.backend, by_aws.mechanism) == (aws, "aws-kms")
    assert (by_gcp.backend, by_gcp.mechanism) == (clouds.gcp_uri, "gcp-kms")
    assert await remote.unwrap(by_gcp, CONTEXT, reference="by-gcp") == data_key
    assert await second.unwrap(by_aws, CONTEXT) == data_key
    for backend in (remote, second):
        await backend.close()
    for hsmd in (both, other_way):
        assert hsmd.end() == 0
    told = {
        entry.event.correlation_id: entry.event
        for entry in both.record()
        if entry.event.correlation_id in ("by-aws", "by-gcp")
    }
    expected = {
        "master_key_version": 1,
        "context_sha256": sha256(CONTEXT).hexdigest(),
    }
    assert told["by-aws"].details == expected | {"backend": aws, "mechanism": "aws-kms"}
    assert told["by-gcp"].details == expected | {
        "backend": clouds.gcp_uri,
        "mechanism": "gcp-kms",
    }
    assert all(event.success for event in told.values())
    for file in (both.folder / "record").rglob("*"):
        if file.is_file():
            text = file.read_bytes()
            assert data_key not in text
            assert data_key.hex().encode() not in text


async def test_only_the_process_has_the_credentials(
    clouds: Clouds, make: MakeHsmd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks the process needs no credentials of the cloud; every request to it was made
    with the process's own.
    """
    for name in {**clouds.env, "AWS_PROFILE": "", "AWS_SESSION_TOKEN": ""}:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.setenv(name, clouds.names[name])
    aws = clouds.aws.make_uri()
    hsmd = make(aws, clouds.gcp_uri)
    remote = await open_backend(hsmd.uri, options=PATIENT)
    wrapped = await remote.wrap(bytes(32), CONTEXT)
    assert await remote.unwrap(wrapped, CONTEXT) == bytes(32)
    await remote.close()
    with pytest.raises(ConfigurationError, match="found no credentials"):
        await open_backend(aws, options=PATIENT)
    assert {request.access_key for request in clouds.aws.front.requests} == {ACCESS_KEY}
    # The server of the tests lets nobody in without the token of the account.
    assert clouds.gcp.methods()
    assert clouds.tokens.asked >= 1
    assert TOKEN not in hsmd.log.read_text()


@pytest.mark.parametrize(
    ("taken", "added", "told"),
    [
        (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), {}, "found no credentials"),
        ((), {"AWS_ENDPOINT_URL_KMS": "https://127.0.0.1:1"}, "AWS_ENDPOINT_URL_KMS is set"),
        (("GOOGLE_APPLICATION_CREDENTIALS",), {}, "Application Default Credentials found none"),
    ],
)
async def test_a_process_that_cannot_reach_its_cloud_says_why(
    clouds: Clouds,
    make: MakeHsmd,
    taken: tuple[str, ...],
    added: dict[str, str],
    told: str,
) -> None:
    """Without credentials, or with an endpoint of somebody's in the environment, the process is up,
    not healthy, and says what to mend.
    """
    env = {name: value for name, value in clouds.env.items() if name not in taken} | added
    # Where Google's library looks next.
    env["HOME"] = str(clouds.folder)
    google = any(name.startswith("GOOGLE") for name in taken)
    hsmd = make(clouds.gcp_uri if google else clouds.aws.make_uri(), env=env)
    status = hsmd.status()
    assert status["healthy"] is False
    assert told in status["devices"][0]["problem"]
    with pytest.raises(ConfigurationError, match=told):
        await open_backend(hsmd.uri, options=PATIENT)


def test_a_source_of_credentials_that_fails(clouds: Clouds, make: MakeHsmd) -> None:
    """While Google gives no token the process says so, and it serves once Google does."""
    clouds.tokens.status = 503
    hsmd = make(clouds.gcp_uri)
    (device,) = hsmd.status()["devices"]
    assert device["state"] == "STARTING"
    assert "Google" in device["problem"]
    clouds.tokens.status = 200
    ends = time.monotonic() + 60
    while not hsmd.status()["healthy"]:
        assert time.monotonic() < ends


@pytest.mark.parametrize("name", REFUSED)
def test_an_environment_that_speaks_is_refused(clouds: Clouds, make: MakeHsmd, name: str) -> None:
    """Variables that make a library write data keys, or weaken TLS, stop the start, as the
    server's.
    """
    hsmd = make(clouds.gcp_uri, env={name: "1"}, start=False)
    ended = hsmd.run()
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"ironwork-hsmd: {name} is set: ")


async def test_google_makes_versions_and_the_process_learns_of_them(
    clouds: Clouds, make: MakeHsmd
) -> None:
    """`ironwork-hsmd create` makes Google's first version and further ones, on record; the running
    process wraps with the newest after SIGHUP, and older blobs open.
    """
    clouds.gcp.versions.clear()
    clouds.gcp.primary = 0
    hsmd = make(clouds.gcp_uri, start=False)
    first = hsmd.run("create")
    assert (first.returncode, json.loads(first.stdout)) == (0, {"version": 1}), first.stderr
    assert hsmd.run("create").returncode == 1
    hsmd.start()
    remote = await open_backend(hsmd.uri, options=PATIENT)
    old = await remote.wrap(bytes(32), CONTEXT)
    assert hsmd.run("create", "--next").returncode == 0
    assert hsmd.process is not None
    hsmd.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(30):
        while (new := await remote.wrap(bytes(32), CONTEXT)).key_version == 1:
            pass
    assert (old.key_version, new.key_version) == (1, 2)
    assert await remote.unwrap(old, CONTEXT) == await remote.unwrap(new, CONTEXT) == bytes(32)
    await remote.close()
    made = [entry.event for entry in entries_of(hsmd.folder / "record" / "operator")]
    assert [event.operation for event in made] == ["hsm.generate"] * 4
    assert [event.details.get("master_key_version") for event in made if event.success] == [1, 2]


async def test_googles_own_rotation_is_noticed(clouds: Clouds, make: MakeHsmd) -> None:
    """A version that Google made primary by itself wraps after SIGHUP, also where the process may
    not list versions.
    """
    for method in ("GetCryptoKey", "ListCryptoKeyVersions"):
        clouds.gcp.lasting[method] = Fault(code=grpc.StatusCode.PERMISSION_DENIED)
    hsmd = make(clouds.gcp_uri)
    remote = await open_backend(hsmd.uri, options=PATIENT)
    clouds.gcp.add_version()
    assert (await remote.wrap(bytes(32), CONTEXT)).key_version == 1
    assert hsmd.process is not None
    hsmd.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(30):
        while (await remote.wrap(bytes(32), CONTEXT)).key_version == 1:
            pass
    assert hsmd.status()["devices"][0]["starts"] == 1
    await remote.close()


def test_aws_makes_its_own_keys(clouds: Clouds, make: MakeHsmd) -> None:
    """A KMS key of AWS is its owner's to make: the command says so, and nothing is written."""
    missing = "awskms:///arn:aws:kms:eu-central-1:123456789012:key/" + "0" * 8 + "-0000" * 3
    hsmd = make(f"{missing}-{'0' * 12}", start=False)
    said = hsmd.run("create")
    assert said.returncode == 1
    assert "with the device's own tools" in said.stderr
    assert not (hsmd.folder / "record").exists()
