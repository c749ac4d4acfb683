"""Reads of the current key that a deletion overtakes."""

from types import SimpleNamespace

import pytest

from ironwork_server.core.values import StoredKey

from .conftest import OTHER_KEY, Custody
from .test_add_key import add
from .test_delete_key import delete
from .test_use_key import use


async def test_a_read_that_a_deletion_overtook_is_done_again(
    custody: Custody, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query whose key is added to and deleted before its answer is used fails no request."""
    old = await add(custody)
    current = custody.store.current
    overtaken: list[None] = []

    async def slow(workspace: str) -> StoredKey | None:
        row = await current(workspace)
        if not overtaken:
            overtaken.append(None)
            await add(custody, OTHER_KEY)
            await delete(custody, old)
        return row

    monkeypatch.setattr(custody.user, "_store", SimpleNamespace(current=slow))
    await use(custody)
    assert custody.anthropic.keys == [OTHER_KEY]
