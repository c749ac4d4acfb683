"""The first version of a master key: made once, by `master-key create` or by `dev`."""

from collections.abc import Sequence
from pathlib import Path

from ironwork_hsm import KeyCreator, KeyVersion
from ironwork_hsm.backends import open_backend
from ironwork_server.app.startup import StartupError
from ironwork_server.custody.generate import generate_master_key
from ironwork_server.journal import FileJournal, JournalError


async def create_first(uri: str, *, audit: Path, origin: str) -> tuple[KeyVersion, bool]:
    """The current version at uri, and whether it was made now: version 1, where there was none.

    The audit log says so; no server may be using it. Errors: StartupError, HsmError, Unavailable.
    """
    wrapper = await open_backend(uri, allow_missing=True)
    try:
        there = await wrapper.versions()
        if there:
            return there[-1], False
        if not isinstance(wrapper, KeyCreator):
            raise StartupError(f"{wrapper.name}: create the key with the device's own tools.")
        journal = _journal(audit, origin)
        try:
            return await generate_master_key(wrapper.name, wrapper, journal), True
        finally:
            await journal.close()
    finally:
        await wrapper.close()


def _journal(folder: Path, origin: str) -> FileJournal:
    try:
        return FileJournal.open(folder, origin)
    except JournalError as error:
        raise StartupError(str(error)) from None


async def list_versions(uri: str) -> Sequence[KeyVersion]:
    """Every version at uri, oldest first. Errors: HsmError."""
    wrapper = await open_backend(uri, allow_missing=True)
    try:
        return await wrapper.versions()
    finally:
        await wrapper.close()
