"""What a mechanism of the ladder is, and how one is tried: by a real round trip."""

import hmac
from enum import Enum, auto
from typing import Protocol

from ironwork_hsm.binding import CANARY, CANARY_CONTEXT, wipe
from ironwork_hsm.interface import BlobRejected, HsmError, Unavailable
from ironwork_hsm.pkcs11.blob import NoBlob
from ironwork_hsm.pkcs11.errors import DeviceAnswer, NotOffered
from ironwork_hsm.pkcs11.keys import KeyKind
from ironwork_hsm.pkcs11.raw import Parameter


class DeviceKey(Protocol):
    """One key on one lane (raw.RawKey). Each method is one operation in the device; its result is
    the caller's to wipe. Raises DeviceAnswer.
    """

    def encrypt(self, mechanism: int, parameter: Parameter, data: bytearray) -> bytearray: ...

    def decrypt(self, mechanism: int, parameter: Parameter, data: bytearray) -> bytearray: ...

    def sign(self, mechanism: int, data: bytearray) -> bytearray: ...


class Rung(Protocol):
    """One mechanism. Stateless; wrap and unwrap are one operation in the device each."""

    @property
    def mechanism(self) -> str:
        """Its name in blobs."""

    @property
    def kind(self) -> KeyKind:
        """The kind of key that it needs."""

    @property
    def authenticates(self) -> bool:
        """Whether it is the device that finds out that a blob is wrong."""

    def wrap(self, key: DeviceKey, data_key: bytearray, bound: bytes) -> bytes:
        """The blob. bound: what it shall be bound to. Raises DeviceAnswer, NotOffered."""

    def unwrap(self, key: DeviceKey, blob: bytes, bound: bytes) -> bytearray:
        """The data key, for the caller to wipe. Raises BlobRejected, DeviceAnswer."""


class Trial(Enum):
    """How a round trip ended."""

    WORKS = auto()
    REFUSED = auto()  # the device does not offer this mechanism with this key
    FAILS = auto()  # it does, but not now, or wrongly


def open_blob(rung: Rung, key: DeviceKey, blob: bytes, bound: bytes, *, canary: Rung) -> bytearray:
    """rung.unwrap, and where its failure may be the blob's fault or the device's, find out which.

    Then, and only then, the device is asked for a round trip more, by canary: the rung that wraps
    now, since the one that made the blob may be one that the device no longer offers. A device that
    fails that round trip is sick, whatever it said of the blob; else every record would be called
    damaged while it lasts. It may also have been sick just then and be well by now, whatever code
    it gave: so the blob is tried once more. If it opens, that is told as the device's passing fault
    and not as a success, since an unwrap that is on record as done is one operation in the device.
    Raises BlobRejected, Unavailable, DeviceAnswer.
    """
    try:
        return rung.unwrap(key, blob, bound)
    except NoBlob:
        raise  # the device was not asked
    except BlobRejected:
        pass
    except DeviceAnswer as answer:
        if not _may_blame_the_blob(rung, answer):
            raise
    # Outside the handler, so that what follows carries no foreign error as its context.
    if round_trip(canary, key) is not Trial.WORKS:
        raise Unavailable("The HSM fails to decrypt what it has just encrypted.")
    if _opens(rung, key, blob, bound):
        raise Unavailable("The HSM failed at a wrapped key that it opens now; try again.")
    raise BlobRejected("The wrapped key does not open in this context.")


def _opens(rung: Rung, key: DeviceKey, blob: bytes, bound: bytes) -> bool:
    """Whether the blob opens now. Raises DeviceAnswer for a fault that is the device's."""
    try:
        wipe(rung.unwrap(key, blob, bound))
    except BlobRejected:
        return False
    except DeviceAnswer as answer:
        if _may_blame_the_blob(rung, answer):
            return False
        raise
    return True


def _may_blame_the_blob(rung: Rung, answer: DeviceAnswer) -> bool:
    return answer.rejected or (rung.authenticates and answer.ambiguous)


def round_trip(rung: Rung, key: DeviceKey) -> Trial:
    """Whether this key, on this lane, wraps and unwraps a known value by this mechanism now."""
    canary = bytearray(CANARY)
    try:
        blob = rung.wrap(key, canary, CANARY_CONTEXT)
        opened = rung.unwrap(key, blob, CANARY_CONTEXT)
    except NotOffered:
        return Trial.REFUSED
    except DeviceAnswer as answer:
        return Trial.REFUSED if answer.refused else Trial.FAILS
    except HsmError:
        return Trial.FAILS
    works = hmac.compare_digest(opened, CANARY)
    wipe(opened)
    # A device that does not encrypt at all must not pass either.
    return Trial.WORKS if works and CANARY not in blob else Trial.FAILS
