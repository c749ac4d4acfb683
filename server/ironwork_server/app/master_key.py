"""The master key over its life: created, listed, rotated, moved to, retired."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ironwork_hsm import KeyCreator, KeyVersion
from ironwork_hsm.backends import open_backend
from ironwork_server.app.break_glass import recipient_of
from ironwork_server.app.operator import operating
from ironwork_server.app.settings import Settings
from ironwork_server.app.startup import StartupError
from ironwork_server.core.values import Wrapping
from ironwork_server.custody.generate import generate_master_key
from ironwork_server.custody.operator_records import OperatorRecords
from ironwork_server.custody.retire import SETTLE_S, destroy_version, retire_version
from ironwork_server.custody.rewrap import Report, Rewrapper
from ironwork_server.custody.rotate import rotate_master_key
from ironwork_server.journal import FileJournal, JournalError
from ironwork_server.store import open_store


async def create_first(
    uri: str, *, audit: Path, origin: str, principal: str = ""
) -> tuple[KeyVersion, bool]:
    """The current version at uri, and whether it was made now: version 1, where there was none.

    The log in audit says so, which nothing else may be using: the server's own for `dev`, else the
    commands'. principal: who runs the command. Errors: StartupError, HsmError, Unavailable.
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
            return await generate_master_key(
                wrapper.name, wrapper, OperatorRecords(journal, principal)
            ), True
        finally:
            await journal.close()
    finally:
        await wrapper.close()


def _journal(folder: Path, origin: str) -> FileJournal:
    try:
        return FileJournal.open(folder, origin)
    except JournalError as error:
        raise StartupError(str(error)) from None


@dataclass(frozen=True, slots=True)
class ListedVersion:
    """One version: as its device reports it, and as the store uses it. The device's attributes are
    None for one that the store names and no device holds. mechanism: what it wraps with, '' where
    it cannot. rows is None without a store.
    """

    backend: str
    version: int
    label: str | None
    sensitive: bool | None
    extractable: bool | None
    never_extractable: bool | None
    local: bool | None
    mechanism: str | None
    current: bool
    retired: bool
    rows: int | None
    pepper: bool


async def list_versions(settings: Settings) -> list[ListedVersion]:
    """Every version of every URI, and every one that the store names. Errors: HsmError,
    IronworkError.
    """
    known = await _wrappings(settings)
    listed = []
    for number, uri in enumerate(settings.master_key.uris):
        wrapper = await open_backend(uri, allow_missing=True)
        try:
            held = await wrapper.versions()
        finally:
            await wrapper.close()
        switched = [
            one.version
            for one in (known or {}).values()
            if one.switched_on and one.backend == wrapper.name
        ]
        newest = [held[-1].version] if held else []
        for version in held:
            used = (known or {}).pop((wrapper.name, version.version), None)
            current = number == 0 and version.version in (switched or newest)
            listed.append(_listed(wrapper.name, version, used, current=current, store=known))
    return listed + [_missing(one) for one in (known or {}).values()]


def _listed(
    backend: str,
    version: KeyVersion,
    used: Wrapping | None,
    *,
    current: bool,
    store: object,
) -> ListedVersion:
    rows = None if store is None else 0
    return ListedVersion(
        backend=backend,
        version=version.version,
        label=version.label,
        sensitive=version.sensitive,
        extractable=version.extractable,
        never_extractable=version.never_extractable,
        local=version.local,
        mechanism=version.mechanism,
        current=current,
        retired=used is not None and used.retired,
        rows=rows if used is None else used.rows,
        pepper=used is not None and used.pepper,
    )


def _missing(used: Wrapping) -> ListedVersion:
    return ListedVersion(
        used.backend,
        used.version,
        None,
        None,
        None,
        None,
        None,
        None,
        current=False,
        retired=used.retired,
        rows=used.rows,
        pepper=used.pepper,
    )


async def _wrappings(settings: Settings) -> dict[tuple[str, int], Wrapping] | None:
    """What the store says, by backend and version; None where there is no store yet."""
    if not settings.store.path.exists():
        return None
    store = open_store(settings.store.url)
    try:
        return {(one.backend, one.version): one for one in await store.wrappings()}
    finally:
        await store.close()


async def rotate(settings: Settings) -> int:
    """The version that wraps from now on. Errors: StartupError, HsmError, IronworkError."""
    async with operating(settings) as open_:
        return await rotate_master_key(open_.wrappers, open_.store, open_.records)


async def rewrap(
    settings: Settings,
    *,
    rate: float,
    begin: Callable[[int], None],
    progress: Callable[[int], None],
) -> Report:
    """Move everything under the current version. begin: told how many rows there are to move.
    Errors: StartupError, HsmError, IronworkError.
    """
    async with operating(settings) as open_:
        rewrapper = Rewrapper(
            open_.wrappers,
            open_.store,
            open_.records,
            rate=rate,
            progress=progress,
            recipient=recipient_of(settings),
        )
        target = await rewrapper.target()
        rows = [
            one
            for one in await open_.store.wrappings()
            if (one.backend, one.version) != (target.backend, target.version)
        ]
        begin(sum(one.rows for one in rows))
        return await rewrapper.run()


async def retire(
    settings: Settings,
    version: int,
    *,
    backend: str | None,
    destroy: bool,
    admin_pin_source: str,
    settle_s: float = SETTLE_S,
) -> None:
    """Retire a version and, if asked, destroy it. Errors: StartupError, HsmError, IronworkError."""
    async with operating(settings) as open_:
        first = open_.wrappers[0]
        name = backend or first.name
        wrapper = open_.wrapper(name)
        wrapping = first if name == first.name else None
        await retire_version(name, version, open_.store, open_.records, wrapping=wrapping)
        if not destroy:
            return
        # The token takes its security officer only where nothing else of this process is open.
        for other in open_.wrappers:
            if other is not wrapper:
                await other.close()
        await destroy_version(
            wrapper,
            name,
            version,
            open_.records,
            admin_pin_source=admin_pin_source,
            settle_s=settle_s,
        )
