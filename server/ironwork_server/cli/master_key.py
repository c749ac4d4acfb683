"""`ironwork-server master-key create|list`."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ironwork_hsm import KeyCreator, KeyVersion
from ironwork_hsm.backends import open_backend
from ironwork_server.app.startup import StartupError, refuse_speaking_environment
from ironwork_server.cli.config import settings_from


def create(config: Path | None, *, as_json: bool) -> int:
    """Create version 1 in the HSM that the first URI names. Refused where there is one."""
    refuse_speaking_environment()
    uri = settings_from(config).master_key.uris[0]
    _show([asyncio.run(_create(uri))], as_json=as_json)
    return 0


def list_versions(config: Path | None, *, as_json: bool) -> int:
    """List every version that the first URI's HSM holds."""
    refuse_speaking_environment()
    uri = settings_from(config).master_key.uris[0]
    _show(asyncio.run(_list(uri)), as_json=as_json)
    return 0


async def _create(uri: str) -> KeyVersion:
    wrapper = await open_backend(uri, allow_missing=True)
    try:
        if await wrapper.versions():
            raise StartupError("The HSM holds this master key already; nothing was changed.")
        if not isinstance(wrapper, KeyCreator):
            raise StartupError(f"{wrapper.name}: create the key with the device's own tools.")
        return await wrapper.create_version()
    finally:
        await wrapper.close()


async def _list(uri: str) -> Sequence[KeyVersion]:
    wrapper = await open_backend(uri, allow_missing=True)
    try:
        return await wrapper.versions()
    finally:
        await wrapper.close()


def _show(versions: Sequence[KeyVersion], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(version) for version in versions]))  # noqa: T201  the answer
        return
    table = Table("version", "label", "sensitive", "extractable", "never extractable", "local")
    for version in versions:
        table.add_row(
            str(version.version),
            version.label,
            _word(version.sensitive),
            _word(version.extractable),
            _word(version.never_extractable),
            _word(version.local),
        )
    Console().print(table)


def _word(value: bool) -> str:
    return "yes" if value else "no"
