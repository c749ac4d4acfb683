"""Every kind of store there is, for the contract's suites."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fixtures.stores import SqliteStores
from ironwork_server.store import Store

STORES = [SqliteStores]


@pytest.fixture(params=STORES, ids=lambda kind: kind.name)
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqliteStores]:
    made = request.param(tmp_path)
    yield made
    await made.close()


@pytest.fixture
def url(stores: SqliteStores) -> str:
    return stores.new()


@pytest.fixture
def store(stores: SqliteStores, url: str) -> Store:
    return stores.open(url)
