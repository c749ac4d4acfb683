"""AES-256-GCM in the device (C_Encrypt, C_Decrypt), with the data key's context as associated data.

Three ways in which devices take their initialisation vector (IV), and so three mechanisms:

`aes-256-gcm`: from us, 12 random bytes (NIST SP 800-38D section 8.2.2). Blob, 61 bytes:
    0 layout 0x01 · 1..12 IV · 13..60 ciphertext of the data key, then the 16-byte tag
`aes-256-gcm-device-iv`: 12 zero bytes are given, and the device writes its own over them (AWS
CloudHSM). Blob, 61 bytes:
    0 layout 0x02 · 1..12 IV · 13..60 ciphertext and tag
`aes-256-gcm-appended-iv`: none is given, and the device puts its own 16 bytes behind the tag (Luna
in FIPS mode). Blob, 65 bytes:
    0 layout 0x03 · 1..16 IV · 17..64 ciphertext and tag

A device that does anything else with the IV than the mechanism says is NotOffered, on every wrap:
above all a device that takes the zeros as they are would use one IV twice, which gives its key
away; what it made then is thrown away.
"""

import ctypes
import os

from ironwork_hsm.binding import DATA_KEY_BYTES, wipe
from ironwork_hsm.interface import BlobRejected
from ironwork_hsm.pkcs11.blob import NONCE_BYTES, SEALED_BYTES, TAG_BYTES, split
from ironwork_hsm.pkcs11.errors import DeviceAnswer, NotOffered
from ironwork_hsm.pkcs11.keys import KeyKind
from ironwork_hsm.pkcs11.raw import CKM_AES_GCM, GcmParameters, copied
from ironwork_hsm.pkcs11.rung import DeviceKey

_APPENDED_IV_BYTES = 16


class _Gcm:
    """What the three share."""

    kind = KeyKind.AES
    authenticates = True
    mechanism: str
    _layout: int
    _iv_bytes = NONCE_BYTES

    def unwrap(self, key: DeviceKey, blob: bytes, bound: bytes) -> bytearray:
        """See Rung.unwrap."""
        iv, sealed = split(blob, self._layout, self._iv_bytes, SEALED_BYTES)
        parameters = _Parameters(iv, bound)
        try:
            opened = key.decrypt(CKM_AES_GCM, parameters.structure, bytearray(sealed))
        except DeviceAnswer as answer:
            if not answer.rejected:
                raise
            opened = bytearray()
        if len(opened) != DATA_KEY_BYTES:
            wipe(opened)
            raise BlobRejected("The wrapped key does not open in this context.")
        return opened

    def _pack(self, iv: bytes, sealed: bytes) -> bytes:
        return bytes((self._layout,)) + iv + sealed


class CallerIv(_Gcm):
    mechanism = "aes-256-gcm"
    _layout = 1

    def wrap(self, key: DeviceKey, data_key: bytearray, bound: bytes) -> bytes:
        """See Rung.wrap. At most 2^32 wraps may share one key (SP 800-38D section 8.3)."""
        iv = os.urandom(NONCE_BYTES)
        parameters = _Parameters(iv, bound)
        sealed = key.encrypt(CKM_AES_GCM, parameters.structure, data_key)
        if parameters.iv != iv or len(sealed) != SEALED_BYTES:
            raise NotOffered
        return self._pack(iv, bytes(sealed))


class DeviceIv(_Gcm):
    mechanism = "aes-256-gcm-device-iv"
    _layout = 2

    def wrap(self, key: DeviceKey, data_key: bytearray, bound: bytes) -> bytes:
        """See Rung.wrap."""
        given = bytes(NONCE_BYTES)
        parameters = _Parameters(given, bound)
        sealed = key.encrypt(CKM_AES_GCM, parameters.structure, data_key)
        if parameters.iv == given or len(sealed) != SEALED_BYTES:
            raise NotOffered
        return self._pack(parameters.iv, bytes(sealed))


class AppendedIv(_Gcm):
    mechanism = "aes-256-gcm-appended-iv"
    _layout = 3
    _iv_bytes = _APPENDED_IV_BYTES

    def wrap(self, key: DeviceKey, data_key: bytearray, bound: bytes) -> bytes:
        """See Rung.wrap."""
        parameters = _Parameters(b"", bound)
        output = bytes(key.encrypt(CKM_AES_GCM, parameters.structure, data_key))
        sealed, iv = output[:SEALED_BYTES], output[SEALED_BYTES:]
        if len(iv) != _APPENDED_IV_BYTES or iv == bytes(_APPENDED_IV_BYTES):
            raise NotOffered
        return self._pack(iv, sealed)


class _Parameters:
    """CK_GCM_PARAMS with the memory that it points to, which the device may write into."""

    def __init__(self, iv: bytes, bound: bytes) -> None:
        self._iv = copied(iv) if iv else None
        self._bound = copied(bound)
        self.structure = GcmParameters(
            None if self._iv is None else ctypes.addressof(self._iv),
            len(iv),
            len(iv) * 8,
            ctypes.addressof(self._bound),
            len(bound),
            TAG_BYTES * 8,
        )

    @property
    def iv(self) -> bytes:
        """As it is now."""
        return b"" if self._iv is None else self._iv.raw
