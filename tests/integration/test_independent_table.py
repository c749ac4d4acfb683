"""What a real service logged, tampered with in every way that we know, before verifiers that others
wrote: who finds what.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures.server import PARENT, StartService
from fixtures.signing import SigningKeyFiles
from fixtures.tlog_made import write_tiles
from fixtures.verifiers import Check, openssl_status
from fixtures.witness import StartWitness
from ironwork.keys.v1 import keys_pb2
from ironwork_audit.source import FolderSource, read_entries, read_tile
from ironwork_audit.tlog import (
    Checkpoint,
    Signature,
    TilePath,
    TileReader,
    VerifierKey,
    format_note,
    pack_bundle,
    parse_bundle,
    parse_note,
)
from ironwork_audit.verify import verify
from ironwork_audit.witness_submission import WitnessConflict
from ironwork_hsm.signers import open_signer
from ironwork_server.custody.checkpoints import verifier_key
from ironwork_server.journal.witness import Witness
from ironwork_server.journal.witness_files import WitnessFiles
from ironwork_server.journal.witness_http import WitnessEndpoint

# Where the changes are made: in the first bundle, which is a full one.
AT = 100


@dataclass
class Recorded:
    """A service's log. kept: a checkpoint that somebody else has since the middle of it. middle: a
    copy of what was published then. sign: by the log's own key, as whoever took it over would.
    """

    folder: Path
    key: VerifierKey
    kept: Path
    middle: Path
    sign: Callable[[bytes], bytes]

    @property
    def size(self) -> int:
        return Checkpoint.parse(parse_note((self.folder / "checkpoint").read_bytes()).text).size

    def entries(self) -> list[bytes]:
        """From the bundles, in order."""
        found: list[bytes] = []
        while len(found) < self.size:
            tile = TilePath(None, len(found) // 256, min(256, self.size - len(found)))
            found += read_entries(FolderSource(self.folder), tile)
        return found


@pytest.fixture
async def recorded(
    start_service: StartService, signing_key: SigningKeyFiles, tmp_path: Path
) -> Recorded:
    """A real service has added keys, listed them and ended."""
    folder, kept, middle = tmp_path / "audit", tmp_path / "kept", tmp_path / "middle"
    service = await start_service()
    await service.add()
    for _ in range(70):
        await service.keys().ListMasked(keys_pb2.ListMaskedRequest(parent=PARENT), timeout=20)
    await service.add()  # answered under a checkpoint
    await asyncio.to_thread(_publish, folder, middle)
    shutil.copy(middle / "checkpoint", kept)
    for _ in range(70):
        await service.keys().ListMasked(keys_pb2.ListMaskedRequest(parent=PARENT), timeout=20)
    await service.stop()  # type: ignore[attr-defined]
    signer = await open_signer(signing_key.uri)
    key = verifier_key("ironwork.test/server", signer)
    loop = asyncio.get_running_loop()

    def sign(text: bytes) -> bytes:
        return asyncio.run_coroutine_threadsafe(signer.sign(text), loop).result(30)

    return Recorded(folder, key, kept, middle, sign)


def _publish(folder: Path, to: Path) -> None:
    """As somebody who copies the files to a web server: the checkpoint first."""
    to.mkdir()
    shutil.copy(folder / "checkpoint", to)
    shutil.copytree(folder / "tile", to / "tile", ignore=shutil.ignore_patterns("*.new"))


def change_bundle(log: Recorded, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = log.folder / TilePath(None, 0).path
    path.write_bytes(pack_bundle(change(parse_bundle(path.read_bytes(), 256))))


def flip_entry(log: Recorded) -> None:
    """One bit of one entry."""
    change_bundle(log, lambda all_: [*all_[:AT], _flipped(all_[AT]), *all_[AT + 1 :]])


def flip_hash(log: Recorded) -> None:
    """One bit of one hash in a tile."""
    path = log.folder / TilePath(0, 0).path
    path.write_bytes(_flipped(path.read_bytes()))


def remove(log: Recorded) -> None:
    """An entry is taken out."""
    change_bundle(log, lambda all_: [*all_[:AT], *all_[AT + 1 :]])


def swap(log: Recorded) -> None:
    """Two entries change places."""
    change_bundle(log, lambda all_: [*all_[:AT], all_[AT + 1], all_[AT], *all_[AT + 2 :]])


def rewrite_unsigned(log: Recorded) -> None:
    """An entry is rewritten, and every hash with it; the signature cannot be."""
    note = (log.folder / "checkpoint").read_bytes()
    rewrite(log, lambda _: parse_note(note).signatures[0].value)


def rewrite_signed(log: Recorded) -> None:
    """The same by whoever holds the signing key."""
    rewrite(log, log.sign)


def rewrite(log: Recorded, sign: Callable[[bytes], bytes]) -> None:
    entries, size = log.entries(), log.size
    at = next(i for i, entry in enumerate(entries) if b'"ListMasked"' in entry)
    entries[at] = entries[at].replace(b"alice", b"malice")
    shutil.rmtree(log.folder / "tile")
    text = Checkpoint(log.key.name, size, write_tiles(log.folder, entries)).text
    note = format_note(text, [Signature.of(log.key, sign(text.encode()))])
    (log.folder / "checkpoint").write_bytes(note)


def roll_back(log: Recorded) -> None:
    """The tail is cut off, and a checkpoint that was once published is put back."""
    shutil.rmtree(log.folder / "tile")
    shutil.copytree(log.middle / "tile", log.folder / "tile")
    shutil.copy(log.middle / "checkpoint", log.folder / "checkpoint")


def _flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


PROGRAMS = {"ours", "sumdb", "aics-tlog", "tlog-scales"}
# Mutation: who finds it in the files and with the verifier key alone; who with a checkpoint kept
# elsewhere. openssl looks at the checkpoint's signature, a witness at checkpoint and proof.
TABLE: dict[Callable[[Recorded], None], tuple[set[str], set[str]]] = {
    flip_entry: (PROGRAMS, PROGRAMS),
    flip_hash: (PROGRAMS, PROGRAMS),
    remove: (PROGRAMS, PROGRAMS),
    swap: (PROGRAMS, PROGRAMS),
    rewrite_unsigned: (PROGRAMS | {"openssl"}, PROGRAMS | {"openssl"}),
    roll_back: (set(), PROGRAMS | {"witness"}),
    rewrite_signed: (set(), PROGRAMS | {"witness"}),
}


def found_by(log: Recorded, others: dict[str, Check], *older: Path) -> set[str]:
    """Who says that this log is bad. A program that breaks has said nothing."""
    with ThreadPoolExecutor() as pool:
        runs = {
            name: pool.submit(check, log.folder, log.key, *older) for name, check in others.items()
        }
    found = set()
    for name, run in runs.items():
        status, said = run.result()
        assert (status, bool(said)) == (1, True) or status == 0, (name, said)
        if status:
            found.add(name)
    since = older[0].read_bytes() if older else None
    if verify(FolderSource(log.folder), log.key, since=since).finding is not None:
        found.add("ours")
    if openssl_status((log.folder / "checkpoint").read_bytes(), log.key, log.folder.parent):
        found.add("openssl")
    return found


class _Tiles:
    def __init__(self, folder: Path) -> None:
        self._source = FolderSource(folder)

    def hashes(self, size: int) -> TileReader:
        return TileReader(size, lambda tile: read_tile(self._source, tile))


async def _nobody(_: bytes) -> None:
    """Nothing is published."""


async def refused_by_witness(log: Recorded, witness: Witness) -> set[str]:
    files = WitnessFiles(log.folder, _Tiles(log.folder), _nobody)
    try:
        await witness.submit((log.folder / "checkpoint").read_bytes(), files.prove)
    except WitnessConflict:
        return {"witness"}
    return set()


async def test_who_finds_what(
    recorded: Recorded, others: dict[str, Check], start_witness: StartWitness, tmp_path: Path
) -> None:
    """A flipped bit, a removed entry, a swapped pair and an unsigned rewrite are found by every
    verifier from the files alone; a rollback and a rewrite that are signed with our own key by
    whoever holds an earlier checkpoint, and by a witness, which refuses them.
    """
    running = start_witness(tmp_path / "witness", str(recorded.key))
    endpoint = WitnessEndpoint(running.url)
    witness = Witness(endpoint, VerifierKey.parse(running.key), recorded.key)
    good = tmp_path / "good"
    await asyncio.to_thread(_publish, recorded.folder, good)
    assert recorded.size > 256
    assert await asyncio.to_thread(found_by, recorded, others, recorded.kept) == set()
    assert await refused_by_witness(recorded, witness) == set()
    for tamper, (alone, with_kept) in TABLE.items():
        shutil.rmtree(recorded.folder)
        shutil.copytree(good, recorded.folder)
        await asyncio.to_thread(tamper, recorded)
        kept = good / "checkpoint" if tamper is roll_back else recorded.kept
        assert await asyncio.to_thread(found_by, recorded, others) == alone, tamper
        found = await asyncio.to_thread(found_by, recorded, others, kept)
        if "witness" in with_kept:
            found |= await refused_by_witness(recorded, witness)
        assert found == with_kept, tamper
    await endpoint.close()
