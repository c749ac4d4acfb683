"""Throw-away SoftHSM tokens, for development and tests.

Never for a token that matters: softhsm2-util takes the PINs as arguments, where any user of the
machine can see them in the process list for a moment.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ironwork_hsm.interface import ConfigurationError, Unavailable
from ironwork_hsm.uri import Pkcs11Uri

CONFIG_VARIABLE = "SOFTHSM2_CONF"
# Where distributions put it: Debian and Ubuntu (any architecture, then multiarch), Fedora, others.
_MODULE_PATTERNS = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/*/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
_INSTALL = "install the package `softhsm2` (Debian: apt-get install softhsm2)"
_CONFIG = """\
directories.tokendir = {tokens}
objectstore.backend = file
objectstore.umask = 0077
log.level = ERROR
slots.removable = false
"""


@dataclass(frozen=True, slots=True)
class SoftHsmToken:
    """A token under a folder of its own.

    config: its softhsm2.conf. pin_file, so_pin_file: mode 0600. uri: for open_backend, once the
    process has env (or has called use_config) before its first PKCS#11 call.
    """

    label: str
    uri: str
    config: Path
    pin_file: Path
    so_pin_file: Path
    env: Mapping[str, str]


def find_module() -> Path:
    """The path of libsofthsm2.so. Raises ConfigurationError that names the package."""
    for pattern in _MODULE_PATTERNS:
        for path in sorted(Path("/").glob(pattern.removeprefix("/"))):
            if path.is_file():
                return path.resolve()
    raise ConfigurationError(f"SoftHSM's library libsofthsm2.so is not installed; {_INSTALL}.")


def write_config(folder: Path) -> Path:
    """Make folder (0700) with a softhsm2.conf and an empty token folder; returns the former."""
    tokens = folder / "tokens"
    tokens.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    tokens.chmod(0o700)
    config = folder / "softhsm2.conf"
    config.write_text(_CONFIG.format(tokens=tokens.resolve()), encoding="utf-8")
    return config


def config_environment(config: Path) -> dict[str, str]:
    """What a process that shall see the tokens of this configuration needs in its environment."""
    return {CONFIG_VARIABLE: str(config.resolve())}


def use_config(config: Path) -> None:
    """Point SoftHSM in this process at config; before the first backend is opened.

    SoftHSM reads it once, when it is initialised: later calls change nothing.
    """
    os.environ.update(config_environment(config))


def write_pin(path: Path) -> str:
    """Write a new random PIN to path (0600, must not exist) and return it."""
    pin = secrets.token_hex(16)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(pin + "\n")
    return pin


def token_uri(label: str, object_label: str, pin_file: Path) -> str:
    """The URI of a key in a SoftHSM token of this label."""
    uri = Pkcs11Uri(
        token=label, object=object_label, module_path=find_module(), pin_source=pin_file.resolve()
    )
    return uri.uri


def create_token(
    folder: Path,
    label: str,
    *,
    object_label: str = "master",
    config: Path | None = None,
    timeout_s: float = 20.0,
) -> SoftHsmToken:
    """Create a throw-away token, with random PINs in files in folder. It holds no key yet.

    config: the softhsm2.conf of another token, to put this one beside it, so that one process sees
    both; by default folder gets one of its own. A process that has initialised SoftHSM already does
    not see it. Raises ConfigurationError (SoftHSM is not installed) and Unavailable (it failed).
    """
    find_module()
    utility = shutil.which("softhsm2-util")
    if utility is None:
        raise ConfigurationError(f"SoftHSM's command softhsm2-util is not installed; {_INSTALL}.")
    pin_file, so_pin_file = folder / "pin", folder / "so-pin"
    if pin_file.exists() or so_pin_file.exists():
        raise ConfigurationError(f"There is a token below {folder} already; use another folder.")
    if config is None:
        config = write_config(folder)
    env = config_environment(config)
    command = [utility, "--init-token", "--free", "--label", label]
    command += ["--pin", write_pin(pin_file), "--so-pin", write_pin(so_pin_file)]
    if not _succeeds(command, env=os.environ | env, timeout_s=timeout_s):
        raise Unavailable(f"softhsm2-util could not make a token below {folder}.")
    return SoftHsmToken(
        label=label,
        uri=token_uri(label, object_label, pin_file),
        config=config,
        pin_file=pin_file,
        so_pin_file=so_pin_file,
        env=env,
    )


def _succeeds(command: list[str], *, env: Mapping[str, str], timeout_s: float) -> bool:
    """Run it silently. False, not an error: that would quote the command, and with it the PINs."""
    try:
        result = subprocess.run(  # noqa: S603  our own argument list, no shell
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return result.returncode == 0
