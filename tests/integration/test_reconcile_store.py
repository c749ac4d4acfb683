"""The store of a real service against its log, by the commands that an auditor has."""

import json
from pathlib import Path

import pytest

from fixtures.server import StartService
from ironwork.keys.v1 import keys_pb2
from ironwork_audit.cli.main import main as audit
from ironwork_server import store
from ironwork_server.cli import db
from ironwork_server.cli.main import main as server


async def test_a_restored_database_is_found(
    start_service: StartService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The store and the log agree; put back an older database, and the key that was deleted is
    named, and so is the one that is gone. The export names keys and holds nothing of them.
    """
    running = await start_service()
    monkeypatch.setattr(db, "settings_from", lambda _: running.settings)
    kept = await running.add()
    secret = running.simulator.make_key()
    deleted = await running.add(secret)
    before = exported(tmp_path / "before", capsys)
    await running.keys().DeleteKey(keys_pb2.DeleteKeyRequest(name=deleted.name))
    added = await running.add(parent="workspaces/globex")
    after = exported(tmp_path / "after", capsys)
    await running.stop()  # type: ignore[attr-defined]

    log = str(running.folder / "audit")
    assert audit(["reconcile", log, "--store", str(before), "--skew", "0"]) == 0
    assert audit(["reconcile", log, "--store", str(after), "--skew", "0"]) == 0
    capsys.readouterr()

    rows = before.read_text().splitlines()
    restored = tmp_path / "restored"
    head = json.loads(after.read_text().splitlines()[0]) | {"keys": 2}
    restored.write_text("\n".join([json.dumps(head), *rows[1:], ""]))
    assert audit(["reconcile", log, "--store", str(restored), "--skew", "0"]) == 1
    bad = [line for line in capsys.readouterr().out.splitlines() if line.startswith("BAD")]
    assert [line.split()[1] for line in bad] == [f"{deleted.name}:", f"{added.name}:"]
    assert "and back in the store" in bad[0]
    assert "not in the store" in bad[1]

    first, *keys = (json.loads(row) for row in rows)
    assert (first["format"], first["keys"]) == ("ironwork-key-ids/1", 2)
    assert [set(key) for key in keys] == [
        {"workspace", "key_id", "sequence", "created_time", "state"}
    ] * 2
    assert keys[0]["key_id"] == kept.name.rpartition("/")[2]
    assert secret[-4:] not in "".join(rows[1:])


def exported(path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The output of the command in a file."""
    assert server(["db", "export-ids"]) == 0
    path.write_text(capsys.readouterr().out)
    return path


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    """Nothing is made where there is no store."""
    with pytest.raises(store.StoreRefused):
        store.key_ids(f"sqlite:///{tmp_path / 'keys.db'}")
    assert list(tmp_path.iterdir()) == []
