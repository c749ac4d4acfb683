"""Migrations: what `ironwork-server db upgrade` and `db status` rest on."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from ironwork_server.store import (
    MigrationStatus,
    StoreCorrupt,
    StoreMissing,
    StoreRefused,
    mark,
    marker,
    open_store,
    sqlite_path,
    status,
    upgrade,
)
from ironwork_server.store.connection import DatabaseFile
from ironwork_server.store.schema import metadata


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/keys.db"


@contextmanager
def database(url: str) -> Iterator[sqlite3.Connection]:
    """The file, for looking at it and for spoiling it."""
    with closing(sqlite3.connect(sqlite_path(url), isolation_level=None)) as connection:
        yield connection


def tables(url: str) -> set[str]:
    with database(url) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}


def test_the_migrated_schema_is_the_one_in_the_code(url: str) -> None:
    """What the migrations make and what the code expects are the same: tables, columns, types,
    constraints, indexes.
    """
    upgrade(url)
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []
        inspector = sa.inspect(connection)
        for table in metadata.sorted_tables:
            assert inspector.get_pk_constraint(table.name)["constrained_columns"] == [
                column.name for column in table.primary_key
            ]
            checks = {str(one["name"]) for one in inspector.get_check_constraints(table.name)}
            expected = {
                str(one.name) for one in table.constraints if isinstance(one, sa.CheckConstraint)
            }
            assert checks == expected
    engine.dispose()


def test_the_comparison_sees_a_difference(url: str) -> None:
    """The test above would notice a column, an index or a type that is missing or different."""
    upgrade(url)
    with database(url) as connection:
        connection.execute("DROP INDEX ix_replays_created_at")
        connection.execute("ALTER TABLE keys ADD COLUMN more TEXT")
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), metadata)
    engine.dispose()
    assert {difference[0] for difference in found} == {"add_index", "remove_column"}


def test_upgrade_makes_a_store_and_then_does_nothing(url: str) -> None:
    """The first upgrade makes the store, private to its owner; the second changes nothing."""
    before = status(url)
    assert before == MigrationStatus(None, before.head, before.pending)
    assert before.pending[-1] == before.head
    assert not sqlite_path(url).exists(), "looking makes no file"
    assert upgrade(url) == MigrationStatus(before.head, before.head, ())
    assert sqlite_path(url).stat().st_mode & 0o777 == 0o600
    with database(url) as connection:
        first = connection.execute("SELECT * FROM meta").fetchall()
        assert upgrade(url) == status(url)
        assert connection.execute("SELECT * FROM meta").fetchall() == first


def test_a_store_that_was_never_made_is_not_opened(url: str) -> None:
    """Opening makes nothing: it names the command that does."""
    for size in (None, 0):
        if size is not None:
            sqlite_path(url).touch()
        with pytest.raises(StoreRefused, match="ironwork-server db upgrade") as refused:
            open_store(url)
        assert refused.value.reason == "STORE_NOT_INITIALISED"
    assert sqlite_path(url).stat().st_size == 0


def test_a_store_behind_is_not_opened(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that lacks a migration is refused, with the command to run."""
    upgrade(url)
    older = MigrationStatus("0000", "0001", ("0001",))
    monkeypatch.setattr("ironwork_server.store.migrate._compare", lambda _: older)
    with pytest.raises(StoreRefused, match="ironwork-server db upgrade") as refused:
        open_store(url)
    assert refused.value.reason == "STORE_NEEDS_UPGRADE"


def test_a_store_of_a_newer_version_is_refused(url: str) -> None:
    """A revision that this version does not know is neither opened nor migrated."""
    upgrade(url)
    with database(url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    for use in (open_store, upgrade, status, marker):
        with pytest.raises(StoreRefused) as refused:
            use(url)
        assert refused.value.reason == "STORE_IS_NEWER"


def test_a_database_of_something_else_is_left_alone(url: str) -> None:
    """A file that holds another program's tables is refused and not changed."""
    with database(url) as connection:
        connection.execute("CREATE TABLE keys (mine TEXT)")
    with pytest.raises(StoreRefused) as refused:
        upgrade(url)
    assert refused.value.reason == "STORE_IS_FOREIGN"
    assert tables(url) == {"keys"}
    with pytest.raises(StoreRefused) as refused:
        open_store(url)
    assert refused.value.reason == "STORE_NOT_INITIALISED"


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    """A folder in the file's place is a missing store, and stays as it is."""
    folder = tmp_path / "keys.db"
    folder.mkdir(mode=0o755)
    for use in (upgrade, open_store):
        with pytest.raises(StoreMissing):
            use(f"sqlite:///{folder}")
    assert folder.stat().st_mode & 0o777 == 0o755


def test_two_heads_are_corrupt(url: str) -> None:
    """A store that claims two revisions at once was spoilt."""
    upgrade(url)
    with database(url) as connection:
        connection.execute("INSERT INTO alembic_version VALUES ('0000')")
    with pytest.raises(StoreCorrupt):
        status(url)


def test_a_failed_migration_leaves_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that fails half way leaves the store as it was, and can be run again."""

    def fail(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr("alembic.op.bulk_insert", fail)
        with pytest.raises(Exception, match="key store"):
            upgrade(url)
    assert tables(url) == set()
    assert upgrade(url).pending == ()


def test_migrations_at_once_wait_for_each_other(url: str) -> None:
    """Several upgrades of one new store at once all succeed and make it once."""
    code = "import sys; from ironwork_server.store import upgrade; upgrade(sys.argv[1])"
    processes = [subprocess.Popen([sys.executable, "-c", code, url]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    with database(url) as connection:
        assert connection.execute("SELECT count(*) FROM meta").fetchone() == (2,)


async def test_a_mark_stays(url: str) -> None:
    """A store is marked 'dev' or not at all; the mark is there when it is opened, and no upgrade
    or other value takes it off.
    """
    upgrade(url)
    assert marker(url) == ""
    mark(url, "dev")
    for value in ("", "prod"):
        with pytest.raises(StoreRefused) as refused:
            mark(url, value)
        assert refused.value.reason == "STORE_MARKED"
    upgrade(url)
    assert marker(url) == "dev"
    store = open_store(url)
    assert store.marker == "dev"
    await store.close()


async def test_a_restored_dump_is_opened_with_a_log(url: str) -> None:
    """A file that came back without its write-ahead log, as from a dump, gets one on opening."""
    upgrade(url)
    with database(url) as connection:
        assert connection.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
    store = open_store(url)
    await store.check()
    with database(url) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    await store.close()


def test_a_file_system_without_logs_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SQLite cannot share memory between processes, no store is made."""

    def without_shared_memory(file: DatabaseFile, **_: object) -> sqlite3.Connection:
        uri = f"{file.path.as_uri()}?mode=rw&vfs=unix-dotfile"
        return sqlite3.connect(uri, uri=True, isolation_level=None)

    monkeypatch.setattr(DatabaseFile, "connect", without_shared_memory)
    with pytest.raises(StoreRefused) as refused:
        upgrade(url)
    assert refused.value.reason == "STORE_UNSUITABLE"


def test_a_store_without_its_values_is_corrupt(url: str) -> None:
    """A store whose marker is gone is not taken for an unmarked one."""
    upgrade(url)
    with database(url) as connection:
        connection.execute("DELETE FROM meta")
    for use in (open_store, marker):
        with pytest.raises(StoreCorrupt):
            use(url)


def test_organisations_are_filled_from_the_keys_that_there_are(url: str) -> None:
    """0002 remembers the newest named organisation of each workspace of an older store."""
    upgrade(url)
    with database(url) as connection:
        connection.execute("DROP TABLE organizations")
        connection.execute("DROP TABLE master_keys")
        connection.execute("DROP TABLE break_glass")
        connection.execute("DROP TABLE log_heads")
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
        columns = [row[1] for row in connection.execute("PRAGMA table_info(keys)")]
        rows = (("acme", 1, "org-1"), ("acme", 2, "org-2"), ("acme", 3, ""), ("globex", 4, ""))
        for workspace, sequence, organization in rows:
            row = dict.fromkeys(columns, b"") | {
                "workspace": workspace,
                "sequence": sequence,
                "organization_id": organization,
                "key_id": str(sequence),
                "fingerprint": bytes([sequence]),
            }
            marks = ",".join("?" * len(row))
            connection.execute(
                f"INSERT INTO keys ({','.join(row)}) VALUES ({marks})",
                list(row.values()),
            )
    assert status(url).pending == ("0002", "0003", "0004", "0005")
    upgrade(url)
    with database(url) as connection:
        found = connection.execute("SELECT workspace, organization_id FROM organizations")
        assert found.fetchall() == [("acme", "org-2")]
