"""Mechanisms for devices without AES-GCM: the device gives a one-off wrapping key, and
`cryptography` seals the data key under that (AES-256-GCM, random 12-byte nonce).

`hmac-sha256-derive`: wrapping key = HMAC-SHA256 in the device (C_Sign) over three fields, each
after its length in 4 bytes big endian: "ironwork-hmac-v1", the salt, what the blob is bound to.
Blob, 93 bytes:
    0 layout 0x04 · 1..32 salt, random · 33..44 nonce · 45..92 ciphertext and tag

`aes-256-cbc-seed`: a seed of 32 random bytes and 16 zeros, encrypted by AES-CBC without padding in
the device (C_Encrypt) under a random IV. HKDF-SHA256 (RFC 5869) of the seed, without salt, with the
fields "ironwork-seed-v1" and what the blob is bound to as info, gives 64 bytes: the wrapping key
and a commitment to it. CBC finds no tampering; the zeros, the commitment and the tag are what
reject a wrong seed. Blob, 157 bytes:
    0 layout 0x05 · 1..16 IV · 17..64 encrypted seed · 65..96 commitment · 97..108 nonce ·
    109..156 ciphertext and tag
The zeros are there because one AES key opens blobs of GCM too: whoever knows a data key and its GCM
blob knows two blocks before and behind AES (counters and key stream), and could choose a seed of
such blocks and seal what they like under it. For the zeros to come out, AES of the second block
must be the third, and of no such block is that known.

In both the tag covers what the blob is bound to once more, as associated data. The wrapping key is
in this process for the moment that the data key is, and opens that one data key only.
"""

import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ironwork_hsm.binding import DATA_KEY_BYTES, fields, wipe
from ironwork_hsm.interface import BlobRejected, Unavailable
from ironwork_hsm.pkcs11.blob import NONCE_BYTES, SEALED_BYTES, random_secret, split
from ironwork_hsm.pkcs11.errors import NotOffered
from ironwork_hsm.pkcs11.keys import KeyKind
from ironwork_hsm.pkcs11.raw import CKM_AES_CBC, CKM_SHA256_HMAC, copied
from ironwork_hsm.pkcs11.rung import DeviceKey

_SALT_BYTES = 32
_RANDOM_BYTES = 32
_ZEROS = bytes(16)
_SEED_BYTES = _RANDOM_BYTES + len(_ZEROS)
_CBC_IV_BYTES = 16
_COMMITMENT_BYTES = 32
_WRAPPING_KEY_BYTES = 32


class HmacDerive:
    mechanism = "hmac-sha256-derive"
    kind = KeyKind.HMAC
    authenticates = False
    _layout = 4

    def wrap(self, key: DeviceKey, data_key: bytearray, bound: bytes) -> bytes:
        """See Rung.wrap."""
        salt = os.urandom(_SALT_BYTES)
        wrapping_key = self._derive(key, salt, bound)
        try:
            return bytes((self._layout,)) + salt + _seal(wrapping_key, data_key, bound)
        finally:
            wipe(wrapping_key)

    def unwrap(self, key: DeviceKey, blob: bytes, bound: bytes) -> bytearray:
        """See Rung.unwrap."""
        salt, nonce, sealed = split(blob, self._layout, _SALT_BYTES, NONCE_BYTES, SEALED_BYTES)
        wrapping_key = self._derive(key, salt, bound)
        try:
            return _open(wrapping_key, nonce, sealed, bound)
        finally:
            wipe(wrapping_key)

    @staticmethod
    def _derive(key: DeviceKey, salt: bytes, bound: bytes) -> bytearray:
        derived = key.sign(CKM_SHA256_HMAC, fields(b"ironwork-hmac-v1", salt, bound))
        if len(derived) != _WRAPPING_KEY_BYTES:
            wipe(derived)
            raise NotOffered
        return derived


class CbcSeed:
    mechanism = "aes-256-cbc-seed"
    kind = KeyKind.AES
    authenticates = False
    _layout = 5

    def wrap(self, key: DeviceKey, data_key: bytearray, bound: bytes) -> bytes:
        """See Rung.wrap."""
        iv = os.urandom(_CBC_IV_BYTES)
        seed = random_secret(_SEED_BYTES)
        seed[_RANDOM_BYTES:] = _ZEROS
        try:
            encrypted = bytes(key.encrypt(CKM_AES_CBC, copied(iv), seed))
            if len(encrypted) != _SEED_BYTES or encrypted == seed:
                raise NotOffered
            wrapping_key, commitment = _expand(seed, bound)
        finally:
            wipe(seed)
        try:
            sealed = _seal(wrapping_key, data_key, bound)
        finally:
            wipe(wrapping_key)
        return bytes((self._layout,)) + iv + encrypted + commitment + sealed

    def unwrap(self, key: DeviceKey, blob: bytes, bound: bytes) -> bytearray:
        """See Rung.unwrap."""
        iv, encrypted, commitment, nonce, sealed = split(
            blob,
            self._layout,
            _CBC_IV_BYTES,
            _SEED_BYTES,
            _COMMITMENT_BYTES,
            NONCE_BYTES,
            SEALED_BYTES,
        )
        seed = key.decrypt(CKM_AES_CBC, copied(iv), bytearray(encrypted))
        try:
            if len(seed) != _SEED_BYTES:
                raise Unavailable("The HSM's AES-CBC gave a result of another length.")
            if not hmac.compare_digest(seed[_RANDOM_BYTES:], _ZEROS):
                raise _rejected()
            wrapping_key, expected = _expand(seed, bound)
        finally:
            wipe(seed)
        try:
            if not hmac.compare_digest(commitment, expected):
                raise _rejected()
            return _open(wrapping_key, nonce, sealed, bound)
        finally:
            wipe(wrapping_key)


def _expand(seed: bytearray, bound: bytes) -> tuple[bytearray, bytes]:
    """The wrapping key, for the caller to wipe, and the commitment."""
    both = bytearray(_WRAPPING_KEY_BYTES + _COMMITMENT_BYTES)
    info = bytes(fields(b"ironwork-seed-v1", bound))
    HKDF(algorithm=SHA256(), length=len(both), salt=None, info=info).derive_into(seed, both)
    wrapping_key, commitment = both[:_WRAPPING_KEY_BYTES], bytes(both[_WRAPPING_KEY_BYTES:])
    wipe(both)
    return wrapping_key, commitment


def _seal(wrapping_key: bytearray, data_key: bytearray, bound: bytes) -> bytes:
    """Nonce, ciphertext and tag."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(wrapping_key).encrypt(nonce, data_key, bound)


def _open(wrapping_key: bytearray, nonce: bytes, sealed: bytes, bound: bytes) -> bytearray:
    opened = bytearray(DATA_KEY_BYTES)
    try:
        AESGCM(wrapping_key).decrypt_into(nonce, sealed, bound, opened)
    except InvalidTag:
        # It has written the plaintext before it compared the tag (ADR 0002).
        wipe(opened)
    else:
        return opened
    raise _rejected()


def _rejected() -> BlobRejected:
    return BlobRejected("The wrapped key does not open in this context.")
