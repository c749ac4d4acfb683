"""Doctor on the audit log, the store's heads and the witnesses: each check where it fails."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from fixtures.doctor import Look, Sick, of
from fixtures.journal_disk import Unsynced
from fixtures.journal_events import made
from fixtures.tlog_made import KEY, LOG, ORIGIN
from ironwork_audit.tlog import (
    Checkpoint,
    KeyType,
    Signature,
    VerifierKey,
    cosigned_message,
    format_note,
    pack_cosignature,
    root_of,
)
from ironwork_audit.tlog.signed import open_checkpoint
from ironwork_hsm.signers import open_signer
from ironwork_server import store
from ironwork_server.app import doctor_log
from ironwork_server.app.doctor_report import Finding, Status
from ironwork_server.app.settings import load
from ironwork_server.core.values import LogHead
from ironwork_server.custody.checkpoints import Checkpointer
from ironwork_server.journal import FileJournal
from ironwork_server.store import open_store

WRITTEN = datetime(2026, 11, 23, 12, tzinfo=UTC)
SOON = WRITTEN.timestamp() + 5
LATER = WRITTEN.timestamp() + 3600
SIGNERS = [ed25519.Ed25519PrivateKey.from_private_bytes(bytes([n] * 32)) for n in (1, 2)]
WITNESSES = [
    VerifierKey(f"witness.test/{n}", KeyType.COSIGNATURE_V1, signer.public_key().public_bytes_raw())
    for n, signer in enumerate(SIGNERS)
]


@dataclass
class Signed:
    """A log of `size` entries in the folder of the settings, signed by KEY, and its store. roots:
    of its trees, by their size.
    """

    sick: Sick
    folder: Path
    size: int
    id: str
    roots: dict[int, bytes]

    def note(self, size: int, *witnesses: int, root: bytes = b"", at: float = SOON) -> bytes:
        """A checkpoint with these witnesses' signatures, of that time."""
        text = Checkpoint(ORIGIN, size, root or self.roots[size]).text
        signatures = [Signature.of(KEY, LOG.sign(text.encode()))]
        for n in witnesses:
            value = SIGNERS[n].sign(cosigned_message(text, int(at)))
            signatures.append(Signature.of(WITNESSES[n], pack_cosignature(int(at), value)))
        return format_note(text, signatures)

    def keep(self, n: int, note: bytes) -> None:
        """As the server keeps what witness n has signed."""
        (self.folder / "witness").mkdir(exist_ok=True)
        (self.folder / "witness" / WITNESSES[n].key_id.hex()).write_bytes(note)

    def publish(self, note: bytes) -> None:
        (self.folder / "checkpoint.witnessed").write_bytes(note)

    def head(self, size: int, *, root: bytes = b"", id_: str = "") -> None:
        """What the store knows."""

        async def swap() -> None:
            opened = open_store(self.sick.production.settings["store"]["url"])
            old = await opened.log_head(ORIGIN)
            new = LogHead(ORIGIN, id_ or self.id, size, root or self.roots[size])
            assert await opened.swap_log_head(old, new)
            await opened.close()

        asyncio.run(swap())

    def heads(self, size: int | None = 7) -> list[Finding]:
        """size: of the published checkpoint, where there is one."""
        settings = load(self.sick.production.write(), {})
        checkpoint = None if size is None else Checkpoint(ORIGIN, size, self.roots[size])
        return list(doctor_log.heads(settings, checkpoint))

    def witnesses(self, now: float, *, quorum: int = 1) -> list[Finding]:
        audit = self.sick.production.settings["audit"]
        audit["witnesses"] = [
            {"url": f"http://127.0.0.1:{9 + n}", "key": str(key)} for n, key in enumerate(WITNESSES)
        ]
        audit["witness_quorum"] = quorum
        settings = load(self.sick.production.write(), {})
        newest = open_checkpoint(self.note(self.size), KEY)
        return list(doctor_log.witnesses(settings, KEY, newest, now))


@pytest.fixture
def signed(sick: Sick) -> Iterator[Signed]:
    """Seven entries, of which the last two are the checkpoint's own signing."""
    audit = sick.production.settings["audit"]
    audit["origin"] = ORIGIN
    folder = Path(audit["folder"])

    async def write() -> tuple[str, dict[int, bytes]]:
        journal = FileJournal.open(folder, ORIGIN, file_system=Unsynced(), clock=lambda: WRITTEN)
        roots = {0: root_of([])}
        for number in range(7):
            operation = "WithKey" if number < 5 else "hsm.sign"
            time_ = WRITTEN - timedelta(seconds=0 if number < 5 else 9000)
            await journal.append(made(number, operation=operation, time=time_))
            tree = await journal.integrate()
            roots[tree.size] = tree.root
        await journal.publish(
            format_note(
                text := Checkpoint(ORIGIN, 7, tree.root).text,
                [Signature.of(KEY, LOG.sign(text.encode()))],
            )
        )
        folder_id = journal.folder_id
        await journal.close()
        return folder_id, roots

    folder_id, roots = asyncio.run(write())
    return Signed(sick, folder, 7, folder_id, roots)


def one(findings: list[Finding], check: str) -> tuple[Status, str]:
    (found,) = [each for each in findings if each.check == check]
    return found.status, found.says


def test_a_log_that_grew_from_the_store_s_head(signed: Signed) -> None:
    """The head that the store knows is a beginning of this log; one that it has is the same."""
    for size in (5, 7):
        signed.head(size)
        status, says = one(signed.heads(5), "audit.head")
        assert (status, f"the {size} entries" in says) == (Status.OK, True)


def test_no_head_yet(signed: Signed) -> None:
    """A store without a head is all right before the first checkpoint, and to be noticed after."""
    assert one(signed.heads(None), "audit.head")[0] is Status.OK
    status, says = one(signed.heads(), "audit.head")
    assert (status, "knows no head" in says) == (Status.WARN, True)


def no_id(signed: Signed) -> None:
    signed.head(7)
    (signed.folder / "id").unlink()


def another_folder(signed: Signed) -> None:
    signed.head(7, id_="0" * 32)


def longer_in_the_store(signed: Signed) -> None:
    signed.head(9, root=b"r" * 32)


def another_history(signed: Signed) -> None:
    signed.head(5, root=b"r" * 32)


def tiles_are_gone(signed: Signed) -> None:
    signed.head(7)
    (signed.folder / "tile").rename(signed.folder / "away")


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (no_id, "AUDIT_ORIGIN_TAKEN"),
        (another_folder, "AUDIT_ORIGIN_TAKEN"),
        (longer_in_the_store, "AUDIT_ROLLED_BACK"),
        (another_history, "AUDIT_ROLLED_BACK"),
        (tiles_are_gone, "AUDIT_ROLLED_BACK"),
    ],
)
def test_what_the_store_contradicts(
    signed: Signed, break_it: Callable[[Signed], None], says: str
) -> None:
    """A folder on which a start would be refused is found before it, by the same name."""
    break_it(signed)
    status, said = one(signed.heads(), "audit.head")
    assert (status, says in said) == (Status.FAIL, True)


def test_an_older_database(signed: Signed) -> None:
    """A store whose head is behind the published checkpoint was put back: it is said."""
    signed.head(5)
    status, says = one(signed.heads(), "audit.head")
    assert (status, "fewer than the checkpoint's" in says) == (Status.WARN, True)


def test_a_store_that_cannot_be_read(signed: Signed) -> None:
    """Without a database the head is not looked at, and that is said."""
    (signed.sick.production.folder / "db" / "keys.db").unlink()
    assert one(signed.heads(), "audit.head")[0] is Status.WARN


def test_the_commands_log_is_held_to_its_head_too(signed: Signed) -> None:
    """A commands' log whose head the store does not know as this folder's fails."""
    commands = signed.folder.with_name("audit-commands")
    FileJournal.open(commands, f"{ORIGIN}/commands", file_system=Unsynced())._log.close()
    assert one(signed.heads(), "audit.head (commands)")[0] is Status.OK

    async def register() -> None:
        opened = open_store(signed.sick.production.settings["store"]["url"])
        head = LogHead(f"{ORIGIN}/commands", "0" * 32, 0, root_of([]))
        assert await opened.swap_log_head(None, head)
        await opened.close()

    asyncio.run(register())
    assert one(signed.heads(), "audit.head (commands)")[0] is Status.FAIL


def test_witnessed(signed: Signed) -> None:
    """What a quorum has signed is told with its age; a witness that lags only behind the signing
    of the checkpoint itself is not late, however long ago that was.
    """
    for n in (0, 1):
        signed.keep(n, signed.note(5, n))
    signed.publish(signed.note(5, 0, 1))
    found = signed.witnesses(LATER, quorum=2)
    assert {each.status for each in found} == {Status.OK}
    says = one(found, "audit.witnessed")[1]
    assert says == "witnessed up to 5 entries, 3595 seconds ago, by witness.test/0, witness.test/1"
    assert "signed 5 of 7 entries, 3,595 s ago" in one(found, "audit.witness witness.test/1")[1]


def test_a_moment_without_witnesses(signed: Signed) -> None:
    """Entries of a few seconds may wait: no quorum is late before 30 s."""
    found = signed.witnesses(SOON)
    assert one(found, "audit.witnessed")[0] is Status.OK
    assert one(found, "audit.witness witness.test/0")[0] is Status.WARN


def test_never_witnessed(signed: Signed) -> None:
    """Witnesses that have signed nothing for longer than that are a failure."""
    status, says = one(signed.witnesses(LATER), "audit.witnessed")
    assert (status, "UNWITNESSED" in says) == (Status.FAIL, True)


def test_a_witness_that_is_behind(signed: Signed) -> None:
    """Entries that wait for one witness for too long are told; for the quorum, they fail."""
    signed.keep(0, signed.note(3, 0))
    signed.keep(1, signed.note(5, 1))
    signed.publish(signed.note(5, 1))
    found = signed.witnesses(LATER)
    assert one(found, "audit.witness witness.test/0")[0] is Status.WARN
    assert one(found, "audit.witnessed")[0] is Status.OK
    signed.publish(signed.note(3, 0))
    status, says = one(signed.witnesses(LATER), "audit.witnessed")
    assert (status, "newer entries wait for 1 of 2" in says) == (Status.FAIL, True)
    assert one(signed.witnesses(SOON), "audit.witnessed")[0] is Status.OK


def test_entries_that_cannot_be_read_are_late(signed: Signed) -> None:
    """Where it cannot be told for how long entries wait, that is no excuse."""
    (signed.folder / "tile" / "entries").rename(signed.folder / "away")
    assert one(signed.witnesses(SOON), "audit.witnessed")[0] is Status.FAIL


def test_too_few_signatures(signed: Signed) -> None:
    """A witnessed checkpoint with fewer of the settings' witnesses than the quorum fails."""
    signed.publish(signed.note(7, 0))
    status, says = one(signed.witnesses(SOON, quorum=2), "audit.witnessed")
    assert (status, "is signed by 1, wanted are 2 of 2" in says) == (Status.FAIL, True)


def test_a_wrong_cosignature(signed: Signed) -> None:
    """Signatures that are not the witness's, or of another's note, are not taken."""
    forged = signed.note(7, 0).replace(b"witness.test/0", b"witness.test/1")
    signed.keep(1, forged)
    signed.keep(0, signed.note(7, 1))
    signed.publish(forged)
    found = signed.witnesses(SOON)
    for check in ("audit.witness witness.test/0", "audit.witness witness.test/1"):
        assert one(found, check)[0] is Status.FAIL
    assert one(found, "audit.witnessed")[0] is Status.FAIL
    signed.publish(b"no note")
    assert one(signed.witnesses(SOON), "audit.witnessed")[0] is Status.FAIL
    (signed.folder / "witness" / WITNESSES[0].key_id.hex()).unlink()
    (signed.folder / "witness" / WITNESSES[0].key_id.hex()).mkdir()
    assert one(signed.witnesses(SOON), "audit.witness witness.test/0")[0] is Status.FAIL


def test_a_witness_of_another_history(signed: Signed) -> None:
    """A tree that a witness signed and this log has not grown from is a rewritten history."""
    other = signed.note(5, 0, root=b"r" * 32)
    signed.keep(0, other)
    signed.publish(other)
    found = signed.witnesses(SOON)
    status, says = one(found, "audit.witness witness.test/0")
    assert (status, "has not grown from" in says) == (Status.FAIL, True)
    assert one(found, "audit.witnessed")[0] is Status.FAIL


async def test_doctor_says_it(signed: Signed, look: Look) -> None:
    """Doctor holds the checkpoint against the signing key, and the folder against the store."""
    found = await look()
    assert "audit.checkpoint" in of(found, Status.FAIL)
    assert "audit.head" in {each.check for each in found}


async def test_a_checkpoint_of_other_entries(sick: Sick, look: Look) -> None:
    """A checkpoint that is signed, for other entries than those in the tiles, fails."""
    settings = sick.production.settings["audit"]
    signer = await open_signer(settings["signing_key"])
    journal = FileJournal.open(Path(settings["folder"]), settings["origin"])
    await journal.append(made())
    heads = open_store(sick.production.settings["store"]["url"])
    checkpointer = Checkpointer(journal, signer, heads)
    checkpointer.stop()
    await checkpointer.run()
    for close in (journal.close, signer.close, heads.close):
        await close()
    assert "audit.checkpoint" in of(await look(), Status.OK)
    assert "audit.head" in of(await look(), Status.OK)
    for tile in (Path(settings["folder"]) / "tile" / "0").rglob("*"):
        if tile.is_file():
            tile.write_bytes(bytes(len(tile.read_bytes())))
    found = of(await look(), Status.FAIL)
    assert found["audit.checkpoint"] == "signed, but for other entries than those here"
    assert "AUDIT_ROLLED_BACK" in found["audit.head"]


def test_the_newest_head_is_only_read(signed: Signed) -> None:
    """Looking at a head neither makes nor changes one."""
    url = signed.sick.production.settings["store"]["url"]
    assert store.newest_head(url, ORIGIN) is None
    signed.head(5)
    assert store.newest_head(url, ORIGIN) == LogHead(ORIGIN, signed.id, 5, signed.roots[5])
