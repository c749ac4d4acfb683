"""Profiles: what is read, and what the errors say."""

from pathlib import Path

import pytest

from ironwork_client import Profile, ProfileError
from ironwork_client._channel import channel_options
from ironwork_client.profile import default_path

GOOD = {
    "target": "127.0.0.1:7443",
    "ca": "ca.pem",
    "certificate": "sub/agent.pem",
    "private_key": "agent-key.pem",
    "workspace": "acme",
    "server_name": "localhost",
}


def write(folder: Path, values: dict[str, object]) -> Path:
    file = folder / "p.toml"
    lines = [f"{k} = {v!r}\n" if isinstance(v, str) else f"{k} = {v}\n" for k, v in values.items()]
    file.write_text("".join(lines))
    return file


def test_a_profile_is_read_with_paths_beside_it(tmp_path: Path) -> None:
    """Paths are relative to the profile's folder, wherever the process runs."""
    profile = Profile.load(write(tmp_path, GOOD))
    assert profile == Profile(
        target="127.0.0.1:7443",
        ca=tmp_path / "ca.pem",
        certificate=tmp_path / "sub/agent.pem",
        private_key=tmp_path / "agent-key.pem",
        workspace="acme",
        server_name="localhost",
    )
    assert profile.parent == "workspaces/acme"


def test_workspace_and_server_name_may_be_left_out(tmp_path: Path) -> None:
    """An auditor has no workspace; what needs one then says so."""
    values = {k: v for k, v in GOOD.items() if k not in {"workspace", "server_name"}}
    profile = Profile.load(write(tmp_path, values))
    assert (profile.workspace, profile.server_name) == ("", "")
    with pytest.raises(ProfileError, match="workspace = ") as caught:
        _ = profile.parent
    assert caught.value.setting == "workspace"


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"target": None}, "target"),
        ({"ca": None}, "ca"),
        ({"certificate": None}, "certificate"),
        ({"private_key": None}, "private_key"),
        ({"traget": "x"}, "traget"),
        ({"workspace": 5}, "workspace"),
        ({"workspace": "Acme"}, "workspace"),
        ({"workspace": "workspaces/acme"}, "workspace"),
        ({"target": "https://x:1"}, "target"),
        ({"target": "x"}, "target"),
        ({"ca": ""}, "ca"),
    ],
)
def test_an_error_names_the_setting_and_the_file(
    tmp_path: Path, change: dict[str, object], setting: str
) -> None:
    """Missing, unknown and malformed settings are each named."""
    values = {k: v for k, v in (GOOD | change).items() if v is not None}
    file = write(tmp_path, values)
    with pytest.raises(ProfileError, match=setting) as caught:
        Profile.load(file)
    assert caught.value.setting == setting
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"-----BEGIN PRIVATE KEY-----\ncanary\n",
        b"canary",
        b"\xff\xfecanary",
        b'sk-ant-canary = "x"',
        b"x" * (1 << 20) + b"canary",
    ],
)
def test_a_file_that_is_no_profile_is_not_repeated(tmp_path: Path, content: bytes) -> None:
    """Whatever the file holds may be a secret: the error names the file only."""
    file = tmp_path / "p.toml"
    file.write_bytes(content)
    with pytest.raises(ProfileError) as caught:
        Profile.load(file)
    assert "canary" not in str(caught.value)
    assert caught.value.setting == ""
    assert caught.value.__cause__ is None


def test_a_missing_profile_says_how_to_name_one(tmp_path: Path) -> None:
    """The mend is in the message."""
    with pytest.raises(ProfileError, match="--profile FILE"):
        Profile.load(tmp_path / "none.toml")


def test_the_default_is_the_environments_or_the_homes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """IRONWORK_PROFILE wins over the file in the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("IRONWORK_PROFILE", raising=False)
    assert default_path() == tmp_path / ".config/ironwork/profile.toml"
    file = write(tmp_path, GOOD)
    monkeypatch.setenv("IRONWORK_PROFILE", str(file))
    assert Profile.load().target == "127.0.0.1:7443"


@pytest.mark.parametrize("setting", ["ca", "certificate", "private_key"])
def test_credentials_that_cannot_be_read_name_their_setting(profile: Profile, setting: str) -> None:
    """A missing file and one that is no PEM are found before a handshake fails for them."""
    path: Path = getattr(profile, setting)
    path.write_bytes(b"canary")
    with pytest.raises(ProfileError, match="PEM") as caught:
        profile.credentials()
    assert (caught.value.setting, "canary" in str(caught.value)) == (setting, False)
    path.unlink()
    with pytest.raises(ProfileError, match=setting):
        profile.credentials()


def test_the_stamp_changes_with_the_files(profile: Profile) -> None:
    """A renewed, and a removed, certificate is noticed."""
    first = profile.stamp()
    assert profile.stamp() == first
    profile.certificate.write_bytes(b"longer than before" * 1000)
    second = profile.stamp()
    profile.certificate.unlink()
    assert len({first, second, profile.stamp()}) == 3


def test_channels_use_no_proxy_and_repeat_nothing(profile: Profile) -> None:
    """No environment proxy, no retries, a connection for each channel, a bounded silence."""
    options = dict(channel_options(profile, max_receive_bytes=5))
    assert options["grpc.enable_http_proxy"] == 0
    assert options["grpc.enable_retries"] == 0
    assert options["grpc.use_local_subchannel_pool"] == 1
    assert options["grpc.max_receive_message_length"] == 5
    assert options["grpc.keepalive_time_ms"] + options["grpc.keepalive_timeout_ms"] <= 30_000
