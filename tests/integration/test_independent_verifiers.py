"""Our logs, proofs and signatures, checked by what we did not write: Go's sumdb and openssl."""

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.signing import MakeSigningKey
from fixtures.tlog_made import (
    KEY,
    ORIGIN,
    call_event,
    made_entries,
    made_entry,
    rendered,
    signed_checkpoint,
    write_log,
)
from fixtures.verifiers import Check, openssl_status
from ironwork_audit.log import AppendLog
from ironwork_audit.prove import prove_inclusion
from ironwork_audit.source import FolderSource
from ironwork_audit.tlog import (
    Checkpoint,
    KeyType,
    Signature,
    TilePath,
    VerifierKey,
    format_note,
    pack_bundle,
    parse_bundle,
)
from ironwork_audit.tlog.signed import open_checkpoint
from ironwork_audit.verify import verify
from ironwork_hsm import SignatureAlgorithm
from ironwork_hsm.signers import open_signer

ENTRIES = made_entries(600)
# Past 65,536, so that there is a tile of the third level.
LARGE = 66_000


def publish(log: AppendLog) -> bytes:
    tree = log.integrate()
    checkpoint = signed_checkpoint(tree.size, tree.root)
    log.publish(checkpoint)
    return checkpoint


def test_go_reads_what_the_engine_writes(tlogcheck: Check, tmp_path: Path) -> None:
    """Every entry, every tile and the signature, and growth since a checkpoint that was kept."""
    older = tmp_path / "older"
    log = AppendLog.open(tmp_path / "log", ORIGIN)
    while log.size < 1500:
        log.append([made_entry] * 100)
        if log.size == 700:
            older.write_bytes(publish(log))
    publish(log)
    log.close()
    assert tlogcheck("log", tmp_path / "log", KEY, older) == (0, "OK")
    assert verify(FolderSource(tmp_path / "log"), KEY, since=older.read_bytes()).finding is None


def test_go_reads_a_large_tree(tlogcheck: Check, tmp_path: Path) -> None:
    """Past 65,536 entries there are tiles of three levels, full and partial."""
    older = tmp_path / "older"
    log = AppendLog.open(tmp_path / "log", ORIGIN)
    while log.size < LARGE:
        log.append([lambda index: b"%d" % index] * 3000)
        if log.size == 33_000:
            older.write_bytes(publish(log))
    publish(log)
    log.close()
    assert tlogcheck("log", tmp_path / "log", KEY, older) == (0, "OK")


def change_bundle(folder: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = folder / TilePath(None, 1).path
    path.write_bytes(pack_bundle(change(parse_bundle(path.read_bytes(), 256))))


def flip(folder: Path) -> None:
    change_bundle(folder, lambda all_: [*all_[:9], all_[9].replace(b"a", b"b"), *all_[10:]])


def remove(folder: Path) -> None:
    change_bundle(folder, lambda all_: [*all_[:9], *all_[10:]])


def swap(folder: Path) -> None:
    change_bundle(folder, lambda all_: [*all_[:9], all_[10], all_[9], *all_[11:]])


def roll_back(folder: Path) -> None:
    write_log(folder, ENTRIES[:500])


def rewrite(folder: Path) -> None:
    false = rendered(call_event(265, phase="event", success=False), 265)
    write_log(folder, [*ENTRIES[:265], false, *ENTRIES[266:]])


@pytest.mark.parametrize("tamper", [flip, remove, swap, roll_back, rewrite])
def test_both_find_the_same(
    tamper: Callable[[Path], None], tlogcheck: Check, tmp_path: Path
) -> None:
    """A flipped byte, a removed entry, a swapped pair, a rollback and a rewrite that are signed
    with our own key: Go's verifier finds what ours finds.
    """
    folder, kept = tmp_path / "log", tmp_path / "kept"
    kept.write_bytes(write_log(folder, ENTRIES))
    assert tlogcheck("log", folder, KEY, kept) == (0, "OK")
    tamper(folder)
    status, said = tlogcheck("log", folder, KEY, kept)
    assert status == 1, said
    finding = verify(FolderSource(folder), KEY, since=kept.read_bytes()).finding
    assert finding is not None
    if tamper in {flip, remove, swap}:
        assert finding.index == 265


def test_go_checks_our_proofs(tlogcheck: Check, tmp_path: Path) -> None:
    """A tlog-proof file of ours is right by Go's reckoning, and wrong with another entry."""
    write_log(tmp_path / "log", ENTRIES)
    path = tmp_path / "proof"
    for index in (0, 255, 256, 599):
        proof = prove_inclusion(FolderSource(tmp_path / "log"), KEY, index)
        path.write_bytes(proof.text())
        assert tlogcheck("proof", path, KEY) == (0, "OK")
    other = base64.b64encode(ENTRIES[1])
    right = base64.b64encode(ENTRIES[599])
    path.write_bytes(path.read_bytes().replace(right, other))
    assert tlogcheck("proof", path, KEY)[0] == 1


def test_go_refuses_another_key(tlogcheck: Check, tmp_path: Path) -> None:
    """A checkpoint is opened with its own key alone."""
    write_log(tmp_path, ENTRIES)
    other = VerifierKey(ORIGIN, KeyType.ED25519, bytes(32))
    assert tlogcheck("log", tmp_path, other)[0] == 1


@pytest.mark.parametrize("algorithm", SignatureAlgorithm)
async def test_openssl_checks_our_signatures(
    algorithm: SignatureAlgorithm, make_signing_key: MakeSigningKey, tmp_path: Path
) -> None:
    """A checkpoint signed in the HSM, taken apart with string functions alone, verifies."""
    signer = await open_signer(make_signing_key(algorithm).uri)
    is_ed25519 = algorithm is SignatureAlgorithm.ED25519
    kind = KeyType.ED25519 if is_ed25519 else KeyType.ECDSA
    key = VerifierKey(ORIGIN, kind, signer.public_key)
    text = Checkpoint(ORIGIN, 600, b"r" * 32).text
    note = format_note(text, [Signature.of(key, await signer.sign(text.encode()))])
    await signer.close()
    assert open_checkpoint(note, key).checkpoint.size == 600

    assert openssl_status(note, key, tmp_path) == 0
    changed = note.replace(b"\n600\n", b"\n601\n")
    assert openssl_status(changed, key, tmp_path) == 1
