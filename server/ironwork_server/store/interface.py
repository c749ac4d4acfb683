"""What every store offers beside the port."""

from typing import Protocol

from ironwork_server.core.ports import HeadStore, KeyStore, WrapStore

# The store of `ironwork-server dev`: `serve` refuses it.
DEV = "dev"


class Store(KeyStore, WrapStore, HeadStore, Protocol):
    """An open store. marker: '' or 'dev'. installation_id: a UUID4 made with the store."""

    @property
    def marker(self) -> str: ...

    @property
    def installation_id(self) -> str: ...
