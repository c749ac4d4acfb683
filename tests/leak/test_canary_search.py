"""The searches of the leak tests find what is there."""

from __future__ import annotations

import base64
import logging
import sqlite3
from contextlib import closing

import grpc
import grpc.aio

from fixtures.evidence import leaks
from fixtures.scene import Scene, random_body
from ironwork.keys.v1 import keys_pb2


async def test_each_kind_of_search_finds_a_canary(scene: Scene) -> None:
    """A key planted in a log record, an answer, the database, the audit log or a token's folder is
    found there, in every form that leaks take.
    """
    key = f"sk-ant-api03-{random_body()}AA"
    part = key[30:50]
    files = scene.files()
    assert leaks({"key": key.encode()}, files) == []
    logging.getLogger("ironwork_server.test").debug("hello %s", {"x": [part]})
    logging.getLogger("httpcore2.silenced").debug("hello %s", part)
    logging.getLogger("ironwork_server.test").error("event", extra={"problem": key})
    logging.getLogger("other").error("event", exc_info=_raised(ValueError(part)))
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.INTERNAL,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(("x-bin", base64.b64encode(key.encode()))),
        details="no",
    )
    scene.evidence.error(error)
    scene.evidence.answer(keys_pb2.MaskedKey(display_name=part))
    with closing(sqlite3.connect(scene.service.settings.store.path)) as database:
        database.execute("CREATE TABLE planted (value TEXT)")
        database.execute("INSERT INTO planted VALUES (?)", (part.encode().hex(),))
        database.commit()
        planted = {
            found.partition(": ")[2] for found in leaks({"key": key.encode()}, scene.files())
        }
    names = {entry.rpartition("/")[2] for entry in planted}
    assert "keys.db-wal (hexadecimal)" in names
    assert {"answers (plain)", "errors (base64)", "log-lines (plain)", "log-records (plain)"} <= (
        names
    )
    records = scene.evidence.text("log-records")
    assert records.count(part) >= 4, "arguments, fields and exceptions of records are searched"
    assert f"ValueError('{part}')" in records


def _raised(error: Exception) -> Exception:
    try:
        raise error
    except ValueError as raised:
        return raised


async def test_the_search_knows_data_keys_and_the_pin(scene: Scene) -> None:
    """Data keys and the PIN are searched for by their true bytes."""
    assert await scene.add(scene.canary()) == "OK"
    assert len(scene.data_keys) == 2, "the pepper's and the key's"
    assert all(len(key) == 32 for key in scene.data_keys)
    secrets = scene.secrets()
    pin_file = scene.service.token.pin_file
    assert f"PIN: {pin_file} (plain)" in leaks({"PIN": secrets["PIN"]}, [pin_file])
    planted = scene.evidence.folder / "planted"
    planted.write_bytes(b"x" + scene.data_keys[1][5:20].hex().encode())
    assert leaks(secrets, scene.files()) == [f"data key 1: {planted} (hexadecimal)"]
