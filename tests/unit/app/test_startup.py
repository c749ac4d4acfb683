"""What must hold before anything starts."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from ironwork_server.app.startup import (
    StartupError,
    refuse_debugging_loop,
    refuse_shared_place,
    refuse_speaking_environment,
)


@pytest.mark.parametrize(
    "name",
    [
        "GRPC_TRACE",
        "GOOGLE_SDK_PYTHON_LOGGING_SCOPE",
        "GRPC_SSL_CIPHER_SUITES",
        "SSLKEYLOGFILE",
        "PKCS11SPY",
        "PYTHONASYNCIODEBUG",
        "PYTHONDEVMODE",
    ],
)
def test_an_environment_that_prints_secrets_or_weakens_tls_is_refused(name: str) -> None:
    """A variable that makes a library write what it handles, or agree to weaker ciphers, is
    refused by name."""
    with pytest.raises(StartupError, match=f"^{name} is set: .* Unset it"):
        refuse_speaking_environment({name: "1"})


def test_an_ordinary_environment_is_not_refused() -> None:
    """Other variables, and empty ones, are no reason."""
    refuse_speaking_environment({"GRPC_TRACE": "", "GRPC_VERBOSITY": "debug", "PATH": "/bin"})


def test_pythons_development_mode_is_refused() -> None:
    """`python -X dev` turns asyncio's debug mode on without any variable."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-m", "ironwork_server", "serve"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("ironwork-server: Python's development mode is on (-X dev)")
    assert "Traceback" not in done.stderr


def test_a_loop_in_debug_mode_is_refused() -> None:
    """A debugging event loop prints what its callbacks hold."""
    loop = asyncio.new_event_loop()
    try:
        refuse_debugging_loop(loop)
        loop.set_debug(True)
        with pytest.raises(StartupError, match="debug mode"):
            refuse_debugging_loop(loop)
    finally:
        loop.close()


def place(root: Path, pin: str, database: str) -> None:
    """Make both files, and ask."""
    for name in (pin, database):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    refuse_shared_place([root / pin], [root / database])


@pytest.mark.parametrize(
    ("pin", "database"),
    [
        ("pin", "keys.db"),
        ("data/pin", "data/keys.db"),
        ("data/secret/pin", "data/keys.db"),
        ("data/pin", "data/db/keys.db"),
        ("data/x/../pin", "data/keys.db"),
    ],
)
def test_pin_and_database_in_one_place_are_refused(tmp_path: Path, pin: str, database: str) -> None:
    """One folder, or one inside the other: whoever copies that has both."""
    (tmp_path / "data" / "x").mkdir(parents=True)
    with pytest.raises(StartupError, match=r"PIN file .* and the database lie in one place"):
        place(tmp_path, pin, database)


def test_pin_and_database_apart_are_accepted(tmp_path: Path) -> None:
    """Folders beside each other are two places, also where their names begin alike."""
    place(tmp_path, "hsm/pin", "db/keys.db")
    place(tmp_path, "data-pin/pin", "data/keys.db")


def test_links_are_followed(tmp_path: Path) -> None:
    """What counts is where the files are, not where their names stand."""
    for name in ("hsm", "db", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "db" / "pin").touch()
    (tmp_path / "db" / "keys.db").touch()
    (tmp_path / "hsm" / "pin").symlink_to(tmp_path / "db" / "pin")
    (tmp_path / "mount").symlink_to(tmp_path / "db")
    database = tmp_path / "db" / "keys.db"
    for pin in (tmp_path / "hsm" / "pin", tmp_path / "mount" / "pin"):
        with pytest.raises(StartupError, match="one place"):
            refuse_shared_place([pin], [database])
    (tmp_path / "other" / "pin").touch()
    (tmp_path / "db" / "linked").symlink_to(tmp_path / "other" / "pin")
    refuse_shared_place([tmp_path / "db" / "linked"], [database])


def test_every_pin_is_looked_at(tmp_path: Path) -> None:
    """Of several master keys none may have its PIN beside the database."""
    with pytest.raises(StartupError, match="one place"):
        refuse_shared_place(
            [tmp_path / "a" / "pin", tmp_path / "db" / "pin"], [tmp_path / "db" / "keys.db"]
        )
