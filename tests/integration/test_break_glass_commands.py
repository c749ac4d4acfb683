"""`ironwork-server break-glass keygen|open|list|drop`, and the setting, as operators meet them."""

from __future__ import annotations

import asyncio
import getpass
import io
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from fixtures.journal_events import entries
from fixtures.production import Production
from fixtures.server import StartService
from fixtures.softhsm import MakeToken, opened
from fixtures.wrapped_rows import create_pepper, opened_key, sealed_row
from ironwork_server.app.operator import principal
from ironwork_server.app.startup import StartupError
from ironwork_server.cli.main import main
from ironwork_server.store import open_store

KEY = b"sk-ant-api03-" + b"k" * 60 + b"AAzz"
PASSPHRASE = "correct horse battery"


class Terminal(io.StringIO):
    """A terminal to which nothing is written."""

    def isatty(self) -> bool:
        return True


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A key pair made by the command: private, public."""
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    typed(monkeypatch, f"{PASSPHRASE}\n")
    arguments = ["--private-key", str(private), "--public-key", str(public)]
    assert main(["break-glass", "keygen", *arguments]) == 0
    return private, public


def test_a_pair_is_made_once(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The private file is encrypted and its owner's alone; nothing that is there is replaced; a
    short passphrase is refused.
    """
    private, public = pair
    assert private.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED PRIVATE KEY" in private.read_bytes()
    before = private.read_bytes()
    arguments = ["--private-key", str(private), "--public-key", str(public)]
    for passphrase, text in ((PASSPHRASE, "File exists"), ("short", "at least 12 bytes")):
        typed(monkeypatch, f"{passphrase}\n")
        assert main(["break-glass", "keygen", *arguments]) == 1
        assert text in capsys.readouterr().err
    assert private.read_bytes() == before


def test_a_passphrase_is_typed_unseen_and_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a terminal the passphrase is asked for without echo, twice; where they differ, or the
    terminal cannot hide it, nothing is written.
    """
    monkeypatch.setattr("sys.stdin", Terminal())
    said = iter([PASSPHRASE, PASSPHRASE, PASSPHRASE, "another passphrase"])
    monkeypatch.setattr(getpass, "getpass", lambda _: next(said))
    arguments = ["--private-key", str(tmp_path / "a"), "--public-key", str(tmp_path / "b")]
    assert main(["break-glass", "keygen", *arguments]) == 0
    assert capsys.readouterr().out.startswith("recipient ")
    arguments = ["--private-key", str(tmp_path / "c"), "--public-key", str(tmp_path / "d")]
    assert main(["break-glass", "keygen", *arguments]) == 1
    assert "differ" in capsys.readouterr().err

    def echoing(_: str) -> str:
        warnings.warn("would echo", getpass.GetPassWarning, stacklevel=1)
        return PASSPHRASE

    monkeypatch.setattr(getpass, "getpass", echoing)
    assert main(["break-glass", "keygen", *arguments]) == 1
    assert "cannot hide" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


async def test_a_server_without_its_recipient_does_not_start(
    start_service: StartService, tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    """Where break-glass is on, a recipient that is missing or is no public key stops the start; the
    right one is used for the next key.
    """
    private, public = pair
    for path in (tmp_path / "nowhere", private):
        with pytest.raises(StartupError):
            await start_service(break_glass={"recipient": path})
    service = await start_service(break_glass={"recipient": public})
    await service.add()
    store = open_store(service.settings.store.url)
    (row,) = await store.wrapped_elsewhere("", 0, after_sequence=0, limit=5)
    assert row.copy is not None
    assert await store.pepper_copy() is not None
    await store.close()


async def test_a_store_is_moved_without_its_hsm(
    production: Production,
    make_token: MakeToken,
    pair: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rewrap copies what was there before break-glass was on; `open`, with the database, the
    offline key and a new token, leaves a store whose keys open under the new master key. It shows
    no key, and needs the passphrase.
    """
    private, public = pair
    production.settings["break_glass"] = {"recipient": str(public)}
    config = ["--config", str(production.write())]
    assert await run("db", "upgrade", *config) == 0
    assert await run("master-key", "create", *config) == 0
    store = open_store(f"sqlite:///{production.folder / 'db' / 'keys.db'}")
    async with opened(production.token.uri) as wrapper:
        row = await sealed_row(store, wrapper, KEY)
        await create_pepper(store, wrapper)
    assert await run("master-key", "rewrap", *config) == 0
    await store.close()

    new = make_token()
    production.settings["master_key"] = {"uris": [new.uri]}
    production.settings["break_glass"] = {}
    moved = production.folder / "moved.db"
    shutil.copyfile(production.folder / "db" / "keys.db", moved)
    production.settings["store"] = {"url": f"sqlite:///{moved}"}
    config = ["--config", str(production.write())]
    assert await run("master-key", "create", *config) == 0
    opening = ["break-glass", "open", "--private-key", str(private), *config]
    typed(monkeypatch, "wrong passphrase\n")
    assert await run(*opening) == 1
    assert "does not open" in capsys.readouterr().err
    typed(monkeypatch, f"{PASSPHRASE}\n")
    assert await run(*opening) == 0
    said = capsys.readouterr()
    assert "moved 1 keys, and the pepper" in said.out
    assert KEY.decode() not in said.out + said.err
    store = open_store(f"sqlite:///{moved}")
    async with opened(new.uri) as wrapper:
        assert await opened_key(store, wrapper, row.key_id) == KEY
    await store.close()
    told = entries(production.folder / "audit-commands")
    opens = [one.event for one in told if one.event.operation == "break_glass.open"]
    assert len(opens) == 4
    assert {one.principal for one in opens} == {principal()}


async def test_copies_of_a_former_recipient_are_dropped(
    production: Production,
    pair: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`list` says whom there are copies for; `drop` refuses the configured recipient and one that
    has none, leaves alone what new keys get, and with break-glass off takes all, on record as the
    operator's. The keys open all the while.
    """
    production.settings["break_glass"] = {"recipient": str(pair[1])}
    config = ["--config", str(production.write())]
    assert await run("db", "upgrade", *config) == 0
    assert await run("master-key", "create", *config) == 0
    store = open_store(f"sqlite:///{production.folder / 'db' / 'keys.db'}")
    async with opened(production.token.uri) as wrapper:
        row = await sealed_row(store, wrapper, KEY)
        await create_pepper(store, wrapper)
    assert await run("master-key", "rewrap", *config) == 0
    capsys.readouterr()
    assert await run("break-glass", "list", *config) == 0
    (said,) = capsys.readouterr().out.splitlines()
    recipient = said.split()[1].rstrip(":")
    assert said == f"recipient {recipient}: 2 copies, for new keys too"
    for chosen, text in ((recipient, "is break_glass.recipient"), ("x", f"are for {recipient}.")):
        assert await run("break-glass", "drop", "--recipient", chosen, *config) == 1
        assert text in capsys.readouterr().err
    assert await run("break-glass", "drop", *config) == 0
    assert capsys.readouterr().out == "dropped 0 copies; 0 are left\n"

    production.settings["break_glass"] = {}
    config = ["--config", str(production.write())]
    assert await run("break-glass", "drop", "--recipient", recipient, *config) == 0
    assert capsys.readouterr().out == "dropped 1 copies, and the pepper's; 0 are left\n"
    assert await store.copies() == {}
    async with opened(production.token.uri) as wrapper:
        assert await opened_key(store, wrapper, row.key_id) == KEY
    await store.close()
    told = [one.event for one in entries(production.folder / "audit-commands")]
    drops = [one for one in told if one.operation == "break_glass.drop"]
    assert [(one.principal, one.phase) for one in drops] == [
        (principal(), phase) for phase in ("intent", "outcome") * 2
    ]


async def test_a_copy_that_is_needed_still_is_said(
    production: Production,
    make_token: MakeToken,
    pair: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where the HSM that is configured opens nothing, nothing is dropped; it is said by name, and
    the exit code is 1.
    """
    production.settings["break_glass"] = {"recipient": str(pair[1])}
    config = ["--config", str(production.write())]
    assert await run("db", "upgrade", *config) == 0
    assert await run("master-key", "create", *config) == 0
    store = open_store(f"sqlite:///{production.folder / 'db' / 'keys.db'}")
    async with opened(production.token.uri) as wrapper:
        row = await sealed_row(store, wrapper, KEY)
    assert await run("master-key", "rewrap", *config) == 0
    production.settings["master_key"] = {"uris": [make_token(with_key=True).uri]}
    production.settings["break_glass"] = {}
    capsys.readouterr()
    assert await run("break-glass", "drop", "--config", str(production.write())) == 1
    said = capsys.readouterr().out
    assert "dropped 0 copies; 1 are left" in said
    assert "1 (MASTER_KEY_NOT_CONFIGURED)" in said
    assert f"workspaces/acme/keys/{row.key_id}" in said
    assert sum((await store.copies()).values()) == 1
    await store.close()


async def run(*arguments: Any) -> int:
    """A command, which has an event loop of its own."""
    return await asyncio.to_thread(main, list(arguments))
