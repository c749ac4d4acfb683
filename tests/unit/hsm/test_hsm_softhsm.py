"""Throw-away SoftHSM tokens: private files, random PINs, usable at once by a process of its own."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ironwork_hsm import ConfigurationError, Unavailable
from ironwork_hsm.pin import read_pin
from ironwork_hsm.pkcs11 import softhsm as tool
from ironwork_hsm.uri import parse_pkcs11_uri


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_opens_in_a_process_that_gets_its_environment(tmp_path: Path) -> None:
    """A new token, its URI and its env are all that a process needs to create a master key."""
    token = tool.create_token(tmp_path / "a folder", "dev token", object_label="my key")
    script = """
import asyncio, sys
from ironwork_hsm import open_backend
async def main():
    backend = await open_backend(sys.argv[1], allow_missing=True)
    await backend.create_version()
    await backend.check()
    print(backend.name)
    await backend.close()
asyncio.run(main())
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, token.uri],
        env=os.environ | token.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "pkcs11:token=dev%20token;object=my%20key"
    private = [path for path in (tmp_path / "a folder").rglob("*") if path != token.config]
    assert len(private) > 4
    assert all(mode(path) & 0o077 == 0 for path in private)


def test_pins_are_random_and_private(tmp_path: Path) -> None:
    """Each token has PINs of its own in files that only the owner can read, and not in its URI."""
    tokens = [tool.create_token(tmp_path / name, name) for name in ("one", "two")]
    pins = set()
    for token in tokens:
        for path in (token.pin_file, token.so_pin_file):
            with read_pin(path) as pin:
                pins.add(bytes(pin.reveal()))
                assert pin.reveal().decode() not in token.uri
        assert parse_pkcs11_uri(token.uri).pin_source == token.pin_file
    assert len(pins) == 4


def test_existing_pins_are_not_overwritten(tmp_path: Path) -> None:
    """A folder that holds a token is not silently given another."""
    tool.create_token(tmp_path, "one")
    before = (tmp_path / "pin").read_bytes()
    with pytest.raises(ConfigurationError, match="already"):
        tool.create_token(tmp_path, "two")
    assert (tmp_path / "pin").read_bytes() == before


def test_use_config_is_for_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """use_config points this process's SoftHSM at a configuration."""
    monkeypatch.setenv(tool.CONFIG_VARIABLE, "before")
    config = tool.write_config(tmp_path / "x")
    tool.use_config(config)
    assert os.environ[tool.CONFIG_VARIABLE] == str(config)


def test_a_missing_library_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SoftHSM the error says which package to install."""
    monkeypatch.setattr(tool, "_MODULE_PATTERNS", ("/nowhere/*/libsofthsm2.so",))
    with pytest.raises(ConfigurationError, match="package `softhsm2`"):
        tool.find_module()


def test_a_missing_command_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likewise without its command; nothing is left behind."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="package `softhsm2`"):
        tool.create_token(tmp_path / "token", "x")
    assert not (tmp_path / "token").exists()


def test_a_failing_command_tells_no_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where softhsm2-util fails its command line, which holds the PINs, is in no error."""
    fake = tmp_path / "softhsm2-util"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = tmp_path / "token"
    with pytest.raises(Unavailable, match="could not make a token") as caught:
        tool.create_token(folder, "x")
    assert (folder / "pin").read_text().strip() not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
