"""The HSM process as seen from its clients: `unix:` backends and signers (ADR 0019)."""

from ironwork_hsm.remote.signer import open_unix_signer
from ironwork_hsm.remote.wrapper import RemoteKeyWrapper, open_unix

__all__ = ["RemoteKeyWrapper", "open_unix", "open_unix_signer"]
