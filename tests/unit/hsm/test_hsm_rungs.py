"""Each mechanism by itself: known answers, devices that misbehave, and whose fault it was."""

import ctypes
import json
import os
from pathlib import Path
from typing import Any

import pytest

from fixtures.softkey import SoftKey
from ironwork_hsm import BlobRejected, Unavailable
from ironwork_hsm.pkcs11.derived import _expand, _seal
from ironwork_hsm.pkcs11.errors import DeviceAnswer, NotOffered
from ironwork_hsm.pkcs11.gcm import AppendedIv, CallerIv, DeviceIv
from ironwork_hsm.pkcs11.ladder import RUNGS
from ironwork_hsm.pkcs11.raw import CKM_AES_CBC, copied
from ironwork_hsm.pkcs11.rung import Rung, Trial, open_blob, round_trip

VECTORS = json.loads(Path(__file__).with_name("wrap_vectors.json").read_text())["vectors"]
SECRET = bytes(range(32))
BOUND = b"bound to this"
# Those that any device with the mechanism serves; the other two want their device's habit.
PLAIN = [RUNGS[name] for name in ("aes-256-gcm", "hmac-sha256-derive", "aes-256-cbc-seed")]


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def named(rung: Rung) -> str:
    return rung.mechanism


def opened(rung: Rung, key: SoftKey, blob: bytes, bound: bytes) -> bytearray:
    # SoftKey has no IV of its own, so it can only be tried by what it serves.
    canary = rung if any(rung is plain for plain in PLAIN) else CallerIv()
    return open_blob(rung, key, blob, bound, canary=canary)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["comment"])
def test_known_answers(vector: dict[str, Any]) -> None:
    """Blobs that were made by other code from the documented layout open, or do not, as it says."""
    key = SoftKey(bytes.fromhex(vector["master_key"]), bad_tag=0x40)
    rung = RUNGS[vector["mechanism"]]
    blob, bound = bytes.fromhex(vector["blob"]), bytes.fromhex(vector["bound"])
    if vector["result"] == "valid":
        assert opened(rung, key, blob, bound).hex() == vector["data_key"]
    else:
        with pytest.raises(BlobRejected):
            opened(rung, key, blob, bound)


def test_every_mechanism_has_known_answers_of_both_kinds() -> None:
    """Each mechanism's layout is fixed by a blob that opens and by blobs that do not."""
    seen = {(vector["mechanism"], vector["result"]) for vector in VECTORS}
    assert seen == {(name, result) for name in RUNGS for result in ("valid", "invalid")}


def test_layouts_differ() -> None:
    """No two mechanisms have a layout byte in common."""
    layouts = {v["mechanism"]: v["blob"][:2] for v in VECTORS if v["result"] == "valid"}
    assert sorted(layouts.values()) == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("rung", PLAIN, ids=named)
def test_one_operation_each(rung: Rung) -> None:
    """A wrap is exactly one operation in the device, an unwrap another; a rejection is followed by
    one round trip and a second try, which tell whose fault it was.
    """
    key = SoftKey(SECRET, bad_tag=0x40)
    blob = rung.wrap(key, bytearray(32), BOUND)
    assert len(key.operations) == 1
    opened(rung, key, blob, BOUND)
    assert len(key.operations) == 2
    with pytest.raises(BlobRejected):
        opened(rung, key, blob, b"another")
    assert len(key.operations) == 6


@pytest.mark.parametrize("rung", PLAIN, ids=named)
def test_a_sick_device_that_blames_the_blob_is_not_believed(rung: Rung) -> None:
    """A device that rejects what it has itself just made is Unavailable, never BlobRejected."""
    key = SoftKey(SECRET)
    blob = rung.wrap(key, bytearray(32), BOUND)
    if rung.authenticates:
        key.sick = 0x40
    else:
        key.result = lambda result: os.urandom(len(result))
    with pytest.raises(Unavailable) as caught:
        opened(rung, key, blob, BOUND)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("code", [0x05, 0x40])
def test_a_rejection_costs_one_round_trip_more(code: int) -> None:
    """A rejection may be the device's fault, whatever its code: one round trip decides, and a
    second try of the blob; nothing else.
    """
    key = SoftKey(SECRET, bad_tag=code)
    blob = CallerIv().wrap(key, bytearray(32), BOUND)
    key.operations.clear()
    with pytest.raises(BlobRejected):
        opened(CallerIv(), key, blob, b"another")
    assert key.operations == ["decrypt", "encrypt", "decrypt", "decrypt"]


@pytest.mark.parametrize("code", [0x05, 0x40, 0x80000001])
def test_one_fault_on_a_sound_device_is_not_the_blobs(code: int) -> None:
    """A blob that opens at the second try is not rejected, and not counted as opened either."""

    class Stumbling(SoftKey):
        def decrypt(self, mechanism: int, parameter: Any, data: bytearray) -> bytearray:
            result = super().decrypt(mechanism, parameter, data)
            if self.operations == ["encrypt", "decrypt"]:
                raise DeviceAnswer(code)
            return result

    key = Stumbling(SECRET)
    blob = CallerIv().wrap(key, bytearray(32), BOUND)
    with pytest.raises(Unavailable, match="opens now") as caught:
        opened(CallerIv(), key, blob, BOUND)
    assert caught.value.__context__ is None
    assert opened(CallerIv(), key, blob, BOUND) == bytes(32)


def test_a_device_that_goes_at_the_second_try_is_told_so() -> None:
    """A code that names the device passes through from the second try as from the first; one that
    names the blob rejects it.
    """

    class Leaving(SoftKey):
        last = 0x32

        def decrypt(self, mechanism: int, parameter: Any, data: bytearray) -> bytearray:
            if self.operations.count("decrypt") == 2:
                self.operations.append("decrypt")
                raise DeviceAnswer(self.last)
            return super().decrypt(mechanism, parameter, data)

    key = Leaving(SECRET)
    blob = CallerIv().wrap(key, bytearray(32), BOUND)
    with pytest.raises(DeviceAnswer):
        opened(CallerIv(), key, blob, b"another")
    key.operations.clear()
    key.last = 0x40
    with pytest.raises(BlobRejected):
        opened(CallerIv(), key, blob, b"another")


@pytest.mark.parametrize("code", [0x05, 0x06, 0x20, 0x80000001])
def test_an_ambiguous_failure_on_a_sound_device_is_the_blobs(code: int) -> None:
    """A code that may mean anything is the blob's fault where the device works otherwise."""
    key = SoftKey(SECRET, bad_tag=code)
    blob = CallerIv().wrap(key, bytearray(32), BOUND)
    with pytest.raises(BlobRejected) as caught:
        opened(CallerIv(), key, blob, b"another")
    assert caught.value.__context__ is None


@pytest.mark.parametrize("code", [0x05, 0x06, 0x80000001])
def test_an_ambiguous_failure_on_a_sick_device_is_the_devices(code: int) -> None:
    """The same code where the device does not work at all is Unavailable, never BlobRejected."""
    key = SoftKey(SECRET)
    blob = CallerIv().wrap(key, bytearray(32), BOUND)
    key.sick = code
    with pytest.raises(Unavailable) as caught:
        opened(CallerIv(), key, blob, BOUND)
    assert caught.value.__context__ is None


def test_the_canary_is_of_the_mechanism_that_wraps_now() -> None:
    """A blob of a habit that the device has given up is still told from a sick device."""
    key = SoftKey(SECRET)
    vector = next(v for v in VECTORS if v["mechanism"] == "aes-256-gcm-device-iv")
    with pytest.raises(BlobRejected):
        open_blob(DeviceIv(), key, bytes.fromhex(vector["blob"]), b"another", canary=CallerIv())


@pytest.mark.parametrize("rung", PLAIN, ids=named)
def test_a_clear_device_failure_needs_no_canary(rung: Rung) -> None:
    """A code that names the device passes through to the one seam."""
    key = SoftKey(SECRET)
    blob = rung.wrap(key, bytearray(32), BOUND)
    key.sick = 0x30
    key.operations.clear()
    with pytest.raises(DeviceAnswer):
        opened(rung, key, blob, BOUND)
    assert len(key.operations) == 1


@pytest.mark.parametrize("name", ["hmac-sha256-derive", "aes-256-cbc-seed"])
def test_where_the_device_cannot_tell_a_failure_is_never_the_blobs(name: str) -> None:
    """A device that only derives or decrypts a seed knows no wrong blob: its failure is its own."""
    key = SoftKey(SECRET)
    blob = RUNGS[name].wrap(key, bytearray(32), BOUND)
    key.sick = 0x05
    with pytest.raises(DeviceAnswer):
        opened(RUNGS[name], key, blob, BOUND)


@pytest.mark.parametrize("rung", PLAIN, ids=named)
def test_a_round_trip_tells_works_refused_and_fails_apart(rung: Rung) -> None:
    """A device that refuses the mechanism is told from one that fails at it."""
    assert round_trip(rung, SoftKey(SECRET)) is Trial.WORKS
    for refusal in (0x07, 0x54, 0x63, 0x68, 0x70, 0x71):
        assert round_trip(rung, SoftKey(SECRET, sick=refusal)) is Trial.REFUSED
    for fault in (0x05, 0x30, 0x82, 0x101, 0x40):
        assert round_trip(rung, SoftKey(SECRET, sick=fault)) is Trial.FAILS


@pytest.mark.parametrize("rung", list(RUNGS.values()), ids=named)
@pytest.mark.parametrize("length", [0, 16, 33, 64])
def test_results_of_other_lengths_are_not_used(rung: Rung, length: int) -> None:
    """What a device gives in another length than the mechanism's is thrown away."""
    assert round_trip(rung, SoftKey(SECRET, result=lambda _: bytes(length))) is Trial.REFUSED


def test_a_device_that_does_not_encrypt_is_not_sound() -> None:
    """A round trip through a device that returns the plaintext fails."""

    class Clear(SoftKey):
        def encrypt(self, mechanism: int, parameter: Any, data: bytearray) -> bytearray:
            return bytearray(data) + bytes(16)

        def decrypt(self, mechanism: int, parameter: Any, data: bytearray) -> bytearray:
            return data[:32]

    assert round_trip(CallerIv(), Clear(SECRET)) is Trial.FAILS
    seed = SoftKey(SECRET)
    seed.encrypt = lambda mechanism, parameter, data: bytearray(data)  # type: ignore[method-assign]
    assert round_trip(RUNGS["aes-256-cbc-seed"], seed) is Trial.REFUSED


def test_zeros_that_stay_zeros_are_never_an_iv() -> None:
    """A device that takes 12 zero bytes as they are makes no blob: they would be used twice."""
    key = SoftKey(SECRET)
    with pytest.raises(NotOffered):
        DeviceIv().wrap(key, bytearray(32), BOUND)
    assert key.operations == ["encrypt"]


def test_an_iv_that_the_device_changed_is_not_ours() -> None:
    """A device that writes an IV of its own is not used as one that takes ours."""

    class Writing(SoftKey):
        def encrypt(self, mechanism: int, parameter: Any, data: bytearray) -> bytearray:
            sealed = super().encrypt(mechanism, parameter, data)
            ctypes.memmove(parameter.iv, b"\xff" * 12, 12)
            return sealed

    with pytest.raises(NotOffered):
        CallerIv().wrap(Writing(SECRET), bytearray(32), BOUND)


def test_zeros_are_never_an_appended_iv() -> None:
    """A device that appends zeros instead of an IV makes no blob."""

    class Appending(SoftKey):
        def encrypt(self, mechanism: int, parameter: Any, data: bytearray) -> bytearray:
            return bytearray(b"x" * 48 + bytes(16))

    with pytest.raises(NotOffered):
        AppendedIv().wrap(Appending(SECRET), bytearray(32), BOUND)


def test_a_seed_of_another_length_is_the_devices_fault() -> None:
    """A decryption that loses bytes says nothing of the blob."""
    key = SoftKey(SECRET)
    rung = RUNGS["aes-256-cbc-seed"]
    blob = rung.wrap(key, bytearray(32), BOUND)
    key.result = lambda result: result[:31]
    with pytest.raises(Unavailable):
        opened(rung, key, blob, BOUND)


def test_a_known_gcm_blob_makes_no_cbc_blob() -> None:
    """Who knows a data key and its GCM blob cannot make a CBC blob that the same key opens."""
    key, cbc = SoftKey(SECRET), RUNGS["aes-256-cbc-seed"]
    data_key = os.urandom(32)
    known = CallerIv().wrap(key, bytearray(data_key), BOUND)
    iv, sealed = known[1:13], known[13:45]
    # AES of the counters 2 and 3 (NIST SP 800-38D section 7.1) is the key stream.
    stream = _xor(sealed, data_key)
    first, second = stream[:16], stream[16:]
    chosen = os.urandom(16)
    seed = _xor(iv + b"\0\0\0\2", chosen) + _xor(iv + b"\0\0\0\3", first)
    # A third block of either would be its counter after CBC's own exclusive or.
    for third, counter in ((first, b"\0\0\0\2"), (second, b"\0\0\0\3")):
        whole = bytearray(seed + _xor(iv + counter, second))
        wrapping_key, commitment = _expand(whole, b"another context")
        evil = _seal(wrapping_key, bytearray(32), b"another context")
        blob = b"\5" + chosen + first + second + third + commitment + evil
        assert key.decrypt(CKM_AES_CBC, copied(chosen), bytearray(blob[17:65])) == whole
        with pytest.raises(BlobRejected):
            opened(cbc, key, blob, b"another context")


@pytest.mark.parametrize("rung", PLAIN, ids=named)
def test_two_wraps_share_no_random_value(rung: Rung) -> None:
    """IVs, salts, seeds and nonces are new for every wrap."""
    key = SoftKey(SECRET)
    blobs = {rung.wrap(key, bytearray(32), BOUND) for _ in range(50)}
    assert len({blob[1:13] for blob in blobs}) == len({blob[-60:-48] for blob in blobs}) == 50
