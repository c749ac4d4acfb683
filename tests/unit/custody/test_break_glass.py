"""Break-glass: a copy of each data key for an offline key, and a store that outlives its HSM."""

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from fixtures.migrated import NewStore
from fixtures.softhsm import MakeToken, TokenFiles, opened
from fixtures.stores import NOON, added
from fixtures.wrapped_rows import (
    CommandLog,
    create_pepper,
    open_command_log,
    opened_key,
    sealed_row,
)
from ironwork_hsm.pkcs11 import Pkcs11KeyWrapper
from ironwork_server import store as stores
from ironwork_server.core.envelope import Binding, pepper_context, wrap_context
from ironwork_server.core.secret import Secret
from ironwork_server.core.values import Action, BreakGlassCopy, Swap
from ironwork_server.custody.break_glass import BreakGlassError, Recipient, RecoveryKey
from ironwork_server.custody.rewrap import Report, Rewrapper
from ironwork_server.custody.vault import Vault, binding_of
from ironwork_server.store import Store

from .conftest import Custody

KEY = b"sk-ant-api03-" + b"k" * 60 + b"AAzz"
PASSPHRASE = b"correct horse battery"
PAIR = RecoveryKey.generate()
COPY = PAIR.recipient.seal(b"d" * 32, b"row 1")


def test_a_copy_opens_with_its_own_key_and_context() -> None:
    """The private half opens a copy to the data key, under the context it was made with."""
    assert PAIR.open(COPY, b"row 1") == bytearray(b"d" * 32)
    assert len(COPY.sealed) == 80
    assert b"d" * 8 not in COPY.sealed
    for key, context in ((PAIR, b"row 2"), (RecoveryKey.generate(), b"row 1")):
        with pytest.raises(BreakGlassError):
            key.open(COPY, context)


@given(bit=st.integers(0, len(COPY.sealed) * 8 - 1), cut=st.integers(0, 79))
def test_an_altered_copy_does_not_open(bit: int, cut: int) -> None:
    """No bit of a copy can change, and none of it be missing."""
    altered = bytearray(COPY.sealed)
    altered[bit // 8] ^= 1 << bit % 8
    for sealed in (bytes(altered), COPY.sealed[:cut]):
        with pytest.raises(BreakGlassError):
            PAIR.open(BreakGlassCopy(COPY.recipient, sealed), b"row 1")


def test_keys_come_back_from_their_files() -> None:
    """Both halves are read back from PEM; the private one only with its passphrase."""
    pem = PAIR.pem(PASSPHRASE)
    assert b"ENCRYPTED" in pem
    assert RecoveryKey.parse(pem, PASSPHRASE).open(COPY, b"row 1") == b"d" * 32
    again = Recipient.parse(PAIR.recipient.pem)
    assert again.id == PAIR.recipient.id
    assert PAIR.open(again.seal(b"e" * 32, b"x"), b"x") == b"e" * 32


def test_what_is_no_such_key_is_refused() -> None:
    """Other keys, other files, short and wrong passphrases are refused without being quoted."""
    other = ec.generate_private_key(ec.SECP256R1())
    public = other.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    private = other.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(PASSPHRASE),
    )
    for pem in (public, b"canary", b""):
        with pytest.raises(BreakGlassError) as refused:
            Recipient.parse(pem)
        assert "canary" not in str(refused.value)
    for pem, passphrase in (
        (private, PASSPHRASE),
        (PAIR.pem(PASSPHRASE), b"canary-passphrase"),
        (b"canary", PASSPHRASE),
    ):
        with pytest.raises(BreakGlassError) as refused:
            RecoveryKey.parse(pem, passphrase)
        assert "canary" not in str(refused.value)
    with pytest.raises(BreakGlassError, match="12 bytes"):
        PAIR.pem(b"short")


@dataclasses.dataclass
class Scene:
    wrapper: Pkcs11KeyWrapper
    store: Store
    log: CommandLog

    async def rewrap(self, wrapper: Pkcs11KeyWrapper | None = None, **options: object) -> Report:
        rewrapper = Rewrapper(
            [wrapper or self.wrapper],
            self.store,
            self.log.records,
            rate=1e6,
            **options,  # type: ignore[arg-type]
        )
        return await rewrapper.run()


@pytest.fixture
async def scene(
    tmp_path: Path, keyed_token: TokenFiles, new_store: NewStore
) -> AsyncIterator[Scene]:
    store = stores.open_store(new_store(tmp_path / "lost.db"))
    log = open_command_log(tmp_path / "commands")
    async with opened(keyed_token.uri) as wrapper:
        yield Scene(wrapper, store, log)
    await log.journal.close()
    await store.close()


async def test_an_added_key_has_its_copy(custody: Custody) -> None:
    """With a recipient, AddKey's data key and pepper have copies that open to the same, written
    with the row and on record; the key's deletion takes its copy with it.
    """
    vault = Vault([custody.wrapper], custody.store, recipient=PAIR.recipient)  # type: ignore[list-item]
    async with custody.admit(Action.ADD_KEY) as permit:
        (await vault.pepper(permit)).wipe()
        sealed = await vault.seal(permit, Secret(bytearray(KEY)), Binding("acme", "k", 1, NOON))
    assert sealed.copy is not None
    data_key = await custody.wrapper.unwrap(
        sealed.wrapped, wrap_context(Binding("acme", "k", 1, NOON))
    )
    assert PAIR.open(sealed.copy, wrap_context(Binding("acme", "k", 1, NOON))) == data_key
    copy, pepper = await custody.store.pepper_copy(), await custody.store.pepper()
    assert copy is not None
    assert pepper is not None
    assert PAIR.open(copy, pepper_context()) == await custody.wrapper.unwrap(
        pepper, pepper_context()
    )
    told = [one.event for one in custody.entries() if one.event.operation == "break_glass.copy"]
    assert [one.details["purpose"] for one in told] == ["pepper", "data-key"]
    assert {one.details["recipient"] for one in told} == {PAIR.recipient.id}


async def test_a_copy_comes_and_goes_with_its_row(scene: Scene) -> None:
    """A row's copy is read with the row, replaced by a swap, and deleted with it."""
    key = await sealed_row(scene.store, scene.wrapper, KEY)
    other = dataclasses.replace(
        key,
        key_id="other",
        sequence=key.sequence + 1,
        fingerprint=b"o" * 32,
        sealed=dataclasses.replace(key.sealed, copy=COPY),
    )
    await added(scene.store, other)

    async def copies() -> list[BreakGlassCopy | None]:
        rows = await scene.store.wrapped_elsewhere("new", 1, after_sequence=0, limit=9)
        return [row.copy for row in rows]

    assert await copies() == [None, COPY]
    second = RecoveryKey.generate().recipient.seal(b"e" * 32, b"")
    wrapped = key.sealed.wrapped
    gone = dataclasses.replace(wrapped, blob=b"gone")
    await scene.store.swap(
        [
            Swap(other.sequence, wrapped, wrapped, second),
            Swap(key.sequence, gone, wrapped, second),
        ]
    )
    assert await copies() == [None, second]
    await scene.store.delete("acme", "other", replay=None)
    await added(scene.store, dataclasses.replace(other, sealed=key.sealed))
    assert await copies() == [None, None]


async def test_rewrap_makes_copies_for_the_recipient(scene: Scene) -> None:
    """Turning break-glass on, and another recipient, take one rewrap: it copies what is not copied
    for that recipient, the pepper too, and then has nothing to do.
    """
    row = await sealed_row(scene.store, scene.wrapper, KEY)
    await create_pepper(scene.store, scene.wrapper)
    for key in (PAIR, RecoveryKey.generate()):
        assert await scene.rewrap(recipient=key.recipient) == Report(moved=1, pepper_moved=True)
        assert await scene.rewrap(recipient=key.recipient) == Report()
        copy = await scene.store.pepper_copy()
        assert copy is not None
        assert copy.recipient == key.recipient.id
    assert await opened_key(scene.store, scene.wrapper, row.key_id) == KEY


async def test_a_lost_hsm_is_survived(scene: Scene, make_token: MakeToken) -> None:
    """With the offline key, a store moves under a new master key without the old one: its keys and
    its pepper open there to what they were. Each copy that is opened is on record.
    """
    row = await sealed_row(scene.store, scene.wrapper, KEY)
    pepper = await create_pepper(scene.store, scene.wrapper)
    await scene.rewrap(recipient=PAIR.recipient)
    await scene.wrapper.close()
    before = len(scene.log.entries())
    async with opened(make_token(with_key=True).uri) as new:
        assert await scene.rewrap(new, recovery_key=PAIR) == Report(moved=1, pepper_moved=True)
        assert await opened_key(scene.store, new, row.key_id) == KEY
        kept = await scene.store.pepper()
        assert kept is not None
        assert await new.unwrap(kept, pepper_context()) == pepper
    opening = [
        (one.event.operation, one.event.phase, one.event.details.get("purpose"))
        for one in scene.log.entries()[before:]
        if one.event.operation == "break_glass.open"
    ]
    assert opening == [
        ("break_glass.open", "intent", "pepper"),
        ("break_glass.open", "outcome", "pepper"),
        ("break_glass.open", "intent", "data-key"),
        ("break_glass.open", "outcome", "data-key"),
    ]


async def test_what_has_no_copy_is_told(scene: Scene, make_token: MakeToken) -> None:
    """A row without a copy, one whose copy is another recipient's, and one whose copy was altered
    stay as they are, and are counted by their reason.
    """
    rows = [await sealed_row(scene.store, scene.wrapper, KEY + b"%d" % n) for n in range(3)]
    await create_pepper(scene.store, scene.wrapper)
    foreign = RecoveryKey.generate().recipient.seal(b"e" * 32, b"")
    for row, copy in zip(rows[1:], (foreign, COPY), strict=True):
        wrapped = row.sealed.wrapped
        await scene.store.swap([Swap(row.sequence, wrapped, wrapped, copy)])
    async with opened(make_token(with_key=True).uri) as new:
        report = await scene.rewrap(new, recovery_key=PAIR)
    assert report.moved == 0
    assert report.failed == {"BREAK_GLASS_COPY_MISSING": 3, "BREAK_GLASS_COPY_DAMAGED": 1}
    for number, row in enumerate(rows):
        assert await opened_key(scene.store, scene.wrapper, row.key_id) == KEY + b"%d" % number


@pytest.mark.parametrize("length", [0, 31, 33, 100_000])
async def test_a_planted_copy_stops_nothing(
    scene: Scene, make_token: MakeToken, length: int
) -> None:
    """Anybody can seal a copy for the public half: what it holds is a data key, of 32 bytes, or
    that one row stays behind and all others move.
    """
    rows = [await sealed_row(scene.store, scene.wrapper, KEY + b"%d" % n) for n in (0, 1)]
    await create_pepper(scene.store, scene.wrapper)
    await scene.rewrap(recipient=PAIR.recipient)
    planted = await scene.store.get("acme", rows[0].key_id)
    assert planted is not None
    copy = PAIR.recipient.seal(bytes(length), wrap_context(binding_of(planted)))
    with pytest.raises(BreakGlassError):
        PAIR.open(copy, wrap_context(binding_of(planted)))
    wrapped = planted.sealed.wrapped
    await scene.store.swap([Swap(planted.sequence, wrapped, wrapped, copy)])
    async with opened(make_token(with_key=True).uri) as new:
        report = await scene.rewrap(new, recovery_key=PAIR)
        assert await opened_key(scene.store, new, rows[1].key_id) == KEY + b"1"
    assert report.moved == 1
    assert report.failed == {"BREAK_GLASS_COPY_DAMAGED": 1}
