"""The envelope: what was sealed opens in its place, and nowhere else."""

import secrets
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import combinations

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from ironwork_hsm import BlobRejected, WrappedKey
from ironwork_server.core import envelope
from ironwork_server.core.envelope import Binding
from ironwork_server.core.errors import DataLoss
from ironwork_server.core.secret import Secret

KEY = b"sk-ant-api03-" + b"k" * 91 + b"wxYZ"
WHEN = datetime(2026, 11, 23, 4, 5, 6, 789012, tzinfo=UTC)
BINDING = Binding("acme", "7f9c2b1e-1d2a-4c3b-8e4f-001122334455", 42, WHEN)


@dataclass
class MemoryWrapper:
    """A master key in memory, for these tests alone: real AES-GCM, bound as a backend must."""

    master_key: bytes = field(default_factory=lambda: AESGCM.generate_key(256))

    def wrap(self, data_key: bytearray, context: bytes, key_version: int = 1) -> WrappedKey:
        nonce = secrets.token_bytes(12)
        bound = self._bound("memory:a", key_version, "aes-256-gcm", context)
        blob = nonce + AESGCM(self.master_key).encrypt(nonce, data_key, bound)
        return WrappedKey("memory:a", key_version, "aes-256-gcm", blob)

    def unwrap(self, wrapped: WrappedKey, context: bytes) -> bytearray:
        bound = self._bound(wrapped.backend, wrapped.key_version, wrapped.mechanism, context)
        try:
            return bytearray(
                AESGCM(self.master_key).decrypt(wrapped.blob[:12], wrapped.blob[12:], bound)
            )
        except InvalidTag:
            raise BlobRejected from None

    @staticmethod
    def _bound(backend: str, key_version: int, mechanism: str, context: bytes) -> bytes:
        return repr((backend, key_version, mechanism, context)).encode()


@dataclass(frozen=True)
class Row:
    """Everything that a stored row says about a sealed key."""

    nonce: bytes
    ciphertext: bytes
    blob: bytes
    backend: str
    key_version: int
    mechanism: str
    workspace: str
    key_id: str
    sequence: int
    created_at: datetime

    @property
    def binding(self) -> Binding:
        return Binding(self.workspace, self.key_id, self.sequence, self.created_at)


MASTER = MemoryWrapper()


def make_row(key: bytes, binding: Binding, key_version: int = 1) -> Row:
    data_key = envelope.new_data_key()
    nonce, ciphertext = envelope.seal(Secret(key), data_key, binding)
    wrapped = MASTER.wrap(data_key, envelope.wrap_context(binding), key_version)
    return Row(
        nonce,
        ciphertext,
        wrapped.blob,
        wrapped.backend,
        wrapped.key_version,
        wrapped.mechanism,
        binding.workspace,
        binding.key_id,
        binding.sequence,
        binding.created_at,
    )


def open_row(row: Row) -> bytes:
    wrapped = WrappedKey(row.backend, row.key_version, row.mechanism, row.blob)
    data_key = MASTER.unwrap(wrapped, envelope.wrap_context(row.binding))
    with envelope.open_secret(row.nonce, row.ciphertext, data_key, row.binding) as key:
        return bytes(key.reveal())


bindings = st.builds(
    Binding,
    workspace=st.from_regex(r"[a-z][a-z0-9-]{0,62}", fullmatch=True),
    key_id=st.uuids(version=4).map(str),
    sequence=st.integers(0, 2**63 - 1),
    created_at=st.datetimes(timezones=st.just(UTC)),
)
keys = st.binary(min_size=1, max_size=256)


@given(keys, bindings)
def test_opens_what_was_sealed(key: bytes, binding: Binding) -> None:
    """A sealed key opens to the same bytes with its own data key and binding."""
    assert open_row(make_row(key, binding)) == key


FIRST = make_row(KEY, BINDING)
SECOND = replace(
    make_row(
        KEY[:-4] + b"abcd",
        Binding("other", "11111111-1d2a-4c3b-8e4f-001122334455", 43, WHEN + timedelta(hours=1)),
        key_version=2,
    ),
    backend="memory:b",
    mechanism="hmac-sha256",
)
# The second row, as it can be opened: its backend and mechanism are only there to be swapped.
SECOND_OPENS = replace(SECOND, backend="memory:a", mechanism="aes-256-gcm")
PARTS = tuple(Row.__dataclass_fields__)


@pytest.mark.parametrize("part", PARTS)
def test_no_part_can_be_swapped(part: str) -> None:
    """A row with any one part of another row does not open, in either direction."""
    for row, other in ((FIRST, SECOND), (SECOND_OPENS, FIRST)):
        foreign = getattr(other, part)
        if foreign == getattr(row, part):
            continue
        with pytest.raises((DataLoss, BlobRejected)):
            open_row(replace(row, **{part: foreign}))


@pytest.mark.parametrize("size", range(2, len(PARTS)))
def test_no_set_of_parts_can_be_swapped(size: int) -> None:
    """A row with any parts of another row, however many, does not open."""
    rows = make_row(KEY, BINDING), make_row(KEY, replace(BINDING, workspace="b", sequence=1))
    different = [part for part in PARTS if getattr(rows[0], part) != getattr(rows[1], part)]
    for parts in combinations(different, min(size, len(different) - 1)):
        mixed = replace(rows[0], **{part: getattr(rows[1], part) for part in parts})
        with pytest.raises((DataLoss, BlobRejected)):
            open_row(mixed)


@pytest.mark.parametrize(
    "change",
    [
        {"workspace": "acm"},
        {"workspace": "acme-"},
        {"key_id": BINDING.key_id[:-1] + "6"},
        {"sequence": 41},
        {"sequence": -42},
        {"sequence": 420},
        {"created_at": WHEN + timedelta(microseconds=1)},
        {"created_at": WHEN.replace(tzinfo=timezone(timedelta(hours=1)))},
        {"workspace": "acme7f", "key_id": BINDING.key_id[2:]},
    ],
)
def test_the_inner_layer_alone_is_bound(change: dict[str, object]) -> None:
    """With the right data key in hand, the ciphertext still opens only for its own binding."""
    data_key = envelope.new_data_key()
    nonce, ciphertext = envelope.seal(Secret(KEY), data_key, BINDING)
    with pytest.raises(DataLoss) as caught:
        envelope.open_secret(nonce, ciphertext, data_key, replace(BINDING, **change))
    assert caught.value.reason == "KEY_RECORD_DAMAGED"


def test_every_flipped_bit_is_noticed() -> None:
    """No bit of nonce, ciphertext, tag or data key can change unseen."""
    data_key = envelope.new_data_key()
    nonce, ciphertext = envelope.seal(Secret(KEY), data_key, BINDING)
    sealed = [bytearray(nonce), bytearray(ciphertext), data_key]
    for part in sealed:
        for bit in range(8 * len(part)):
            part[bit // 8] ^= 1 << bit % 8
            with pytest.raises(DataLoss):
                envelope.open_secret(bytes(sealed[0]), bytes(sealed[1]), sealed[2], BINDING)
            part[bit // 8] ^= 1 << bit % 8
    with envelope.open_secret(bytes(sealed[0]), bytes(sealed[1]), sealed[2], BINDING) as key:
        assert bytes(key.reveal()) == KEY


@given(st.binary(max_size=40), st.binary(max_size=80), st.binary(max_size=40))
def test_anything_else_is_damage(nonce: bytes, ciphertext: bytes, data_key: bytes) -> None:
    """Bytes of any lengths that were never sealed give DataLoss, and no other error."""
    with pytest.raises(DataLoss):
        envelope.open_secret(nonce, ciphertext, bytearray(data_key), BINDING)


def test_opens_in_place() -> None:
    """open_into writes the plaintext into the caller's buffer and nowhere else in it."""
    data_key = envelope.new_data_key()
    nonce, ciphertext = envelope.seal(Secret(KEY), data_key, BINDING)
    written = bytearray(b"x-api-key: " + bytes(len(KEY)) + b"\r\n")
    with memoryview(written) as view:
        envelope.open_into(nonce, ciphertext, data_key, BINDING, view[11:-2])
    assert written == b"x-api-key: " + KEY + b"\r\n"


@pytest.mark.parametrize("damage", ["tag", "nonce", "length", "data key"])
def test_leaves_nothing_behind_on_failure(damage: str) -> None:
    """What does not open leaves the caller's buffer zeroed, whatever was in it."""
    data_key = envelope.new_data_key()
    nonce, ciphertext = envelope.seal(Secret(KEY), data_key, BINDING)
    if damage == "tag":
        ciphertext = ciphertext[:-1] + bytes([ciphertext[-1] ^ 1])
    elif damage == "nonce":
        nonce = nonce[:-1]
    elif damage == "length":
        ciphertext += b"\0"
    else:
        data_key = data_key[:16]
    target = bytearray(b"y" * len(KEY))
    with pytest.raises(DataLoss) as caught:
        envelope.open_into(nonce, ciphertext, data_key, BINDING, memoryview(target))
    assert target == bytes(len(KEY))
    assert caught.value.__cause__ is None


def test_refuses_a_data_key_of_another_length() -> None:
    """Only AES-256 seals: a shorter data key is an error, not a weaker cipher."""
    for length in (0, 16, 24, 33):
        with pytest.raises(ValueError, match="32 bytes"):
            envelope.seal(Secret(KEY), bytearray(length), BINDING)


def test_without_random_bytes_there_is_no_data_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that gives no random bytes is an error, never a key of zeros."""
    monkeypatch.setattr(envelope, "_getentropy", lambda *_: -1)
    with pytest.raises(OSError, match="no random bytes"):
        envelope.new_data_key()


def test_nothing_random_repeats() -> None:
    """No data key and no nonce comes twice, also where the same key is sealed again."""
    data_key = envelope.new_data_key()
    nonces = {envelope.seal(Secret(KEY), data_key, BINDING)[0] for _ in range(5000)}
    data_keys = {bytes(envelope.new_data_key()) for _ in range(5000)}
    assert len(nonces) == 5000
    assert len(data_keys) == 5000
    assert {len(nonce) for nonce in nonces} == {12}
    assert {len(key) for key in data_keys} == {32}


@given(bindings, bindings)
def test_contexts_are_unambiguous(first: Binding, second: Binding) -> None:
    """Two bindings share a context only where they are equal; no layer shares one with another."""
    for context in (envelope.inner_context, envelope.wrap_context):
        assert (context(first) == context(second)) == (first == second)
    contexts = {
        envelope.inner_context(first),
        envelope.wrap_context(first),
        envelope.pepper_context(),
    }
    assert len(contexts) == 3


def test_the_contexts_are_fixed() -> None:
    """The contexts' bytes are format 1's: a change of them would close every stored key."""
    rest = (
        b"\0\0\0\x011"
        b"\0\0\0\x04acme"
        b"\0\0\0\x247f9c2b1e-1d2a-4c3b-8e4f-001122334455"
        b"\0\0\0\x0242"
        b"\0\0\0\x101795406706789012"
    )
    assert envelope.FORMAT == 1
    assert envelope.inner_context(BINDING) == b"\0\0\0\x17ironwork/envelope/inner" + rest
    assert envelope.wrap_context(BINDING) == b"\0\0\0\x16ironwork/envelope/wrap" + rest
    assert envelope.pepper_context() == b"\0\0\0\x0fironwork/pepper\0\0\0\x011"


def test_one_instant_is_one_context() -> None:
    """A time is bound as an instant: its zone makes no difference, and no zone is an error."""
    elsewhere = WHEN.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert envelope.inner_context(replace(BINDING, created_at=elsewhere)) == envelope.inner_context(
        BINDING
    )
    with pytest.raises(ValueError, match="time zone"):
        envelope.inner_context(replace(BINDING, created_at=WHEN.replace(tzinfo=None)))
