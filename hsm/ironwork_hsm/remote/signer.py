"""The `unix:` signer: signs with the HSM process' signing key (the audit log's checkpoints)."""

from ironwork_hsm.interface import (
    MAX_MESSAGE_BYTES,
    BackendOptions,
    ConfigurationError,
    SignatureAlgorithm,
)
from ironwork_hsm.remote import wire
from ironwork_hsm.remote.connection import Connection
from ironwork_hsm.remote.place import parse_unix_uri
from ironwork_hsm.remote.wire import Kind, SignerInfo
from ironwork_hsm.remote.wrapper import check_reference


class RemoteSigner:
    """Implements Signer. Made by open_unix_signer."""

    def __init__(self, connection: Connection, info: SignerInfo) -> None:
        self._connection = connection
        self._info = info

    @property
    def name(self) -> str:
        return self._info.name

    @property
    def algorithm(self) -> SignatureAlgorithm:
        return self._info.algorithm

    @property
    def public_key(self) -> bytes:
        return self._info.public_key

    async def sign(self, message: bytes, *, reference: str = "") -> bytes:
        """See Signer.sign. Raises ValueError for a message over 64 KiB."""
        if len(message) > MAX_MESSAGE_BYTES:
            raise ValueError(f"the HSM process signs at most {MAX_MESSAGE_BYTES} bytes")
        check_reference(reference)
        return await self._connection.call(
            lambda number: wire.sign(number, message, reference), Kind.SIGNED, wire.parse_signed
        )

    async def close(self) -> None:
        await self._connection.close()


async def open_unix_signer(
    uri: str, *, allow_missing: bool, options: BackendOptions
) -> RemoteSigner:
    """Open the signing key that the process at uri holds. Raises ConfigurationError where it holds
    none, or has not reached it since it started (whatever allow_missing says).
    """
    connection = Connection(parse_unix_uri(uri), options)
    info = await connection.open()
    if info.signer is None:
        await connection.close()
        raise ConfigurationError(
            "The HSM process offers no signing key: name one in its settings (signer), or see what"
            " `ironwork-hsmd status` says of that key's device."
        )
    return RemoteSigner(connection, info.signer)
