"""The record's signing key, in a child of this process as every device: asked as a Signer is."""

import asyncio
from typing import Final

from ironwork_hsm.daemon.device import Device, error_in
from ironwork_hsm.daemon.turns import Asker
from ironwork_hsm.interface import HsmError, SignatureAlgorithm, Unavailable
from ironwork_hsm.remote import wire
from ironwork_hsm.remote.codec import Malformed
from ironwork_hsm.remote.wire import Frame, Kind, SignerInfo

_OWN_TURN: Final = Asker(uid=-1, connection=0)


class DeviceSigner:
    """Implements Signer. What was never open raises why, as Unavailable; a child that is replaced
    must hold the same key, which whoever asks finds by verifying.
    """

    def __init__(self, device: Device) -> None:
        self._device = device

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
        """See Signer.sign."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def answered(answer: Frame | HsmError) -> None:
            if future.done():
                return
            try:
                future.set_result(_signature(answer))
            except HsmError as error:
                future.set_exception(error)

        self._device.send(_OWN_TURN, lambda number: wire.sign(number, message, reference), answered)
        return await future

    async def close(self) -> None:
        """The device is its process' to end."""

    @property
    def _info(self) -> SignerInfo:
        info = self._device.info
        if info is None or info.signer is None:
            raise Unavailable("The record's signing key is not open.")
        return info.signer


def _signature(answer: Frame | HsmError) -> bytes:
    """Raises HsmError."""
    error = error_in(answer)
    if error is not None:
        raise error
    try:
        if isinstance(answer, Frame) and answer.kind is Kind.SIGNED:
            return wire.parse_signed(answer.payload)
    except Malformed:
        pass
    raise Unavailable("The device's process does not speak this protocol.")
