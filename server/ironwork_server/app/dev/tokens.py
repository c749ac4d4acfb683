"""The SoftHSM tokens of a dev state: the HSM process holds them and their PINs, the server none.

All are in one SoftHSM folder, hsm/, since a process of SoftHSM has one; each has a folder for PINs
of its own.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ironwork_hsm.pkcs11.softhsm import (
    SoftHsmToken,
    config_environment,
    create_token,
    token_uri,
    write_config,
)

# `serve` refuses tokens whose label begins like this.
TOKEN_LABEL: Final = "ironwork-dev"  # noqa: S105  a label, no password
_MASTER: Final = "hsm"
_CONFIG: Final = "softhsm2.conf"


@dataclass(frozen=True, slots=True)
class DevTokens:
    """master: of the master key. audit: of the key that signs the server's log. record: of the one
    that signs the HSM process' own; None in a state folder that was made before there was one.
    """

    master: SoftHsmToken
    audit: SoftHsmToken
    record: SoftHsmToken | None


def make_tokens(state: Path) -> DevTokens:
    """New ones, empty; what a start that was broken off left of others goes. Errors: those of
    ironwork_hsm.
    """
    for name in (_MASTER, "hsm-audit", "hsm-record"):
        shutil.rmtree(state / name, ignore_errors=True)
    config = write_config(state / _MASTER)
    return DevTokens(
        create_token(state / _MASTER, TOKEN_LABEL, config=config),
        _beside(state, config, "audit"),
        _beside(state, config, "record"),
    )


def existing_tokens(state: Path) -> DevTokens:
    """Those that are there."""
    config = state / _MASTER / _CONFIG
    # Of a state folder in which the server held this one itself.
    for token in (state / "hsm-audit" / "tokens").glob("*"):
        token.rename(config.parent / "tokens" / token.name)
    signed = (state / "hsm-record").exists()
    return DevTokens(
        _existing(state / _MASTER, TOKEN_LABEL, "master", config),
        _existing(state / "hsm-audit", f"{TOKEN_LABEL}-audit", "checkpoints", config),
        _existing(state / "hsm-record", f"{TOKEN_LABEL}-record", "checkpoints", config)
        if signed
        else None,
    )


def _beside(state: Path, config: Path, name: str) -> SoftHsmToken:
    folder = state / f"hsm-{name}"
    folder.mkdir(mode=0o700)
    return create_token(folder, f"{TOKEN_LABEL}-{name}", object_label="checkpoints", config=config)


def _existing(folder: Path, label: str, object_label: str, config: Path) -> SoftHsmToken:
    pin = folder / "pin"
    return SoftHsmToken(
        label=label,
        uri=token_uri(label, object_label, pin),
        config=config,
        pin_file=pin,
        so_pin_file=folder / "so-pin",
        env=config_environment(config),
    )
