"""What the commands that change master keys need: devices, store, and a log of their own.

A running server holds its log's folder, so commands write to another, whose origin is the server's
with `/commands` behind it. One such command runs at a time on one machine: the folder is locked.
"""

import asyncio
import os
import pwd
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ironwork_audit.publishing import ATTEMPT_DEADLINE_S
from ironwork_hsm import KeyWrapper
from ironwork_hsm.backends import open_backend
from ironwork_server.app.audit_key import open_audit_signer
from ironwork_server.app.settings import Settings
from ironwork_server.app.startup import StartupError
from ironwork_server.custody.checkpoints import Checkpointer
from ironwork_server.custody.operator_records import OperatorRecords
from ironwork_server.custody.versions import by_name
from ironwork_server.journal import FileJournal, JournalError
from ironwork_server.store import Store, open_store

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Operator:
    """Open for one command. wrappers: as in master_key.uris."""

    wrappers: list[KeyWrapper]
    store: Store
    records: OperatorRecords

    def wrapper(self, backend: str) -> KeyWrapper:
        """Who unwraps for this master key. Errors: StartupError."""
        known = by_name(self.wrappers)
        if backend not in known:
            raise StartupError(
                f"master_key.uris lists no such backend; it lists {', '.join(sorted(known))}."
            )
        return known[backend]


@asynccontextmanager
async def operating(settings: Settings) -> AsyncIterator[Operator]:
    """Open all of it; close it at the end. Errors: StartupError, HsmError, IronworkError."""
    async with AsyncExitStack() as stack:
        store, records = await stack.enter_async_context(recording(settings))
        wrappers = []
        for uri in settings.master_key.uris:
            wrapper = await open_backend(uri, allow_missing=True)
            stack.push_async_callback(wrapper.close)
            wrappers.append(wrapper)
        yield Operator(wrappers, store, records)


@asynccontextmanager
async def recording(settings: Settings) -> AsyncIterator[tuple[Store, OperatorRecords]]:
    """The store, and the commands' log, signed to its last entry. Errors: StartupError, HsmError,
    IronworkError.
    """
    async with AsyncExitStack() as stack:
        store = open_store(settings.store.url)
        stack.push_async_callback(store.close)
        journal = open_commands_journal(settings)
        stack.push_async_callback(journal.close)
        await _publish(stack, settings, journal, store)
        yield store, OperatorRecords(journal, principal())


async def _publish(
    stack: AsyncExitStack, settings: Settings, journal: FileJournal, store: Store
) -> None:
    """Sign the log while the command runs, to its last entry."""
    signer = await open_audit_signer(settings)
    stack.push_async_callback(signer.close)
    checkpointer = Checkpointer(journal, signer, store)
    await checkpointer.resume()
    task = asyncio.ensure_future(checkpointer.run())

    async def end() -> None:
        checkpointer.stop()
        done, _ = await asyncio.wait([task], timeout=ATTEMPT_DEADLINE_S * 2)
        if not done:
            task.cancel()
            await asyncio.wait([task])
        checkpointer.require()

    stack.push_async_callback(end)


def open_commands_journal(settings: Settings) -> FileJournal:
    """The commands' log. Errors: StartupError."""
    try:
        return FileJournal.open(commands_folder(settings), commands_origin(settings))
    except JournalError as error:
        raise StartupError(str(error)) from None


def commands_origin(settings: Settings) -> str:
    """The name of the commands' log."""
    return f"{settings.audit.origin}/commands"


def commands_folder(settings: Settings) -> Path:
    """`audit.commands_folder`, or beside the server's own: `…-commands`."""
    folder = settings.audit.folder
    return settings.audit.commands_folder or folder.with_name(f"{folder.name}-commands")


def principal() -> str:
    """Who runs this process, for the log: `unix:UID/NAME`, as the system knows them."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = ""
    return f"unix:{uid}/{name}" if _NAME.fullmatch(name) else f"unix:{uid}"
