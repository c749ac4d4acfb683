"""`ironwork-server master-key create|list|rotate|rewrap|retire`."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from ironwork_hsm import KeyVersion
from ironwork_server.app import master_key
from ironwork_server.app.master_key import ListedVersion
from ironwork_server.app.operator import commands_folder, commands_origin, principal
from ironwork_server.app.startup import StartupError, refuse_speaking_environment
from ironwork_server.cli.config import settings_from
from ironwork_server.custody.rewrap import Report


def create(config: Path | None, *, as_json: bool) -> int:
    """Create version 1 in the HSM that the first URI names. Refused where there is one."""
    refuse_speaking_environment()
    settings = settings_from(config)
    version, made = asyncio.run(
        master_key.create_first(
            settings.master_key.uris[0],
            audit=commands_folder(settings),
            origin=commands_origin(settings),
            principal=principal(),
        )
    )
    if not made:
        raise StartupError("The HSM holds this master key already; nothing was changed.")
    _show_created(version, as_json=as_json)
    return 0


def list_versions(config: Path | None, *, as_json: bool) -> int:
    """List every version of every URI, and what the store has under it."""
    refuse_speaking_environment()
    _show(asyncio.run(master_key.list_versions(settings_from(config))), as_json=as_json)
    return 0


def rotate(config: Path | None) -> int:
    """Make the next version, prove it, and wrap with it from now on."""
    refuse_speaking_environment()
    version = asyncio.run(master_key.rotate(settings_from(config)))
    _say(f"version {version} wraps new keys from now on; move the others with: rewrap")
    return 0


def rewrap(config: Path | None, *, rate: float) -> int:
    """Move everything under the current version; 1 where something could not be moved."""
    refuse_speaking_environment()
    settings = settings_from(config)
    with moving("rewrap") as (begin, progress):
        report = asyncio.run(master_key.rewrap(settings, rate=rate, begin=begin, progress=progress))
    return tell(report)


def retire(
    config: Path | None,
    version: int,
    *,
    backend: str | None,
    destroy: bool,
    admin_pin_source: str,
) -> int:
    """Take nothing under this version any more; destroy it, if asked."""
    refuse_speaking_environment()
    asyncio.run(
        master_key.retire(
            settings_from(config),
            version,
            backend=backend,
            destroy=destroy,
            admin_pin_source=admin_pin_source,
        )
    )
    _say(f"version {version} is {'destroyed' if destroy else 'retired'}")
    return 0


@contextmanager
def moving(
    what: str,
) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A progress bar on standard error: to be told how many rows there are, and how many of them
    were looked at since.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(what, *columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield (
            lambda rows: bar.update(task, total=rows),
            lambda rows: bar.advance(task, rows),
        )


def tell(report: Report) -> int:
    """Say what was moved; 1 where something was not."""
    pepper = ", and the pepper" if report.pepper_moved else ""
    _say(f"moved {report.moved} keys{pepper}; {report.overtaken} were changed or deleted meanwhile")
    tell_failures("not moved", report)
    return 1 if report.failed else 0


def tell_failures(what: str, report: Report) -> None:
    """Say why something stayed as it is, and the first names."""
    for reason, count in sorted(report.failed.items()):
        _say(f"{what}: {count} ({reason})")
    for name in report.examples:
        _say(f"  {name}")


def _show(versions: Sequence[ListedVersion], *, as_json: bool) -> None:
    if as_json:
        _say(json.dumps([asdict(version) for version in versions]))
        return
    # A backend's name is long, so it stands above its versions and not beside each.
    for backend in dict.fromkeys(version.backend for version in versions):
        _say(backend)
        _show_versions([version for version in versions if version.backend == backend])


def _show_versions(versions: Sequence[ListedVersion]) -> None:
    columns = ("version", "label", "sensitive", "extractable", "never extractable", "local")
    table = Table(*columns, "state", "keys")
    for version in versions:
        table.add_row(
            str(version.version),
            version.label or "not in the HSM",
            _word(version.sensitive),
            _word(version.extractable),
            _word(version.never_extractable),
            _word(version.local),
            "current" if version.current else "retired" if version.retired else "",
            _keys(version),
        )
    Console().print(table)


def _show_created(version: KeyVersion, *, as_json: bool) -> None:
    if as_json:
        _say(json.dumps([asdict(version)]))
        return
    table = Table("version", "label", "sensitive", "extractable", "never extractable", "local")
    flags = (version.sensitive, version.extractable, version.never_extractable, version.local)
    table.add_row(str(version.version), version.label, *map(_word, flags))
    Console().print(table)


def _keys(version: ListedVersion) -> str:
    if version.rows is None:
        return "-"
    return f"{version.rows} + pepper" if version.pepper else str(version.rows)


def _word(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"


def _say(text: str) -> None:
    print(text)  # noqa: T201  the answer
