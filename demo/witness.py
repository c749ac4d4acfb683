"""The demo's last step: a rewritten history, signed with our own key, before a C2SP witness that
others wrote (PyPI's aics-witness, from .venv-tlog).
"""

import asyncio
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from demo.backstage import Backstage
from demo.show import Show
from ironwork_audit.source import FolderSource, read_entries, read_tile
from ironwork_audit.tlog import (
    TILE_WIDTH,
    Checkpoint,
    Signature,
    TilePath,
    TileReader,
    VerifierKey,
    consistency_proof,
    format_note,
    leaf_hash,
    pack_bundle,
    pack_tile,
    parse_note,
    root_of,
)
from ironwork_audit.witness import ADD_CHECKPOINT, add_checkpoint
from ironwork_hsm.pkcs11.softhsm import token_uri, use_config
from ironwork_hsm.signers import open_signer

TOOLS = Path(__file__).parents[1] / ".venv-tlog" / "bin"
DEADLINE_S = 20
_LISTENING = re.compile(r"http://127\.0\.0\.1:\d+")


def refuse_a_rewritten_history(show: Show, stage: Backstage) -> None:
    """What the log's own key cannot undo once a witness has seen it."""
    with show.step("The log's own operator rewrites history, and a witness refuses it"):
        log = stage.state / "audit"
        key = VerifierKey.parse((stage.state / "verifier-key").read_text().strip())
        with _witness(stage.folder / "witness", key) as url:
            honest = (log / "checkpoint").read_bytes()
            size = Checkpoint.parse(parse_note(honest).text).size
            show.note(f"PyPI's aics-witness is shown our checkpoint of {size} entries")
            show.claim("it signs: 200", _submit(url, 0, [], honest) == 200)
            forged, changed = stage.folder / "forged", b"/agent/spy"
            root = _rewrite(log, forged, size, changed, b"/agent/joe")
            _sign(stage, forged, Checkpoint(key.name, size, root).text, key)
            show.note(f"now the operator turns {changed.decode()} into /agent/joe in every entry,")
            show.note("makes every hash anew, and has the HSM sign the result with the log's key")
            verified = _verify(forged, stage.state / "verifier-key")
            show.claim(
                "from its files alone nobody can tell: ironwork-audit verify says OK",
                verified.returncode == 0,
            )
            proof = consistency_proof(size, size, _tiles(forged, size))
            answer = _submit(url, size, proof, (forged / "checkpoint").read_bytes())
            show.claim(
                f"the witness refuses it: {answer}, not the history that it signed", answer == 422
            )
            show.note("`serve` makes of that an audit event, and an alarm in health and metrics")
            held = stage.folder / "held"
            held.write_bytes(honest)
            caught = _verify(forged, stage.state / "verifier-key", "--since", str(held))
            show.note(caught.stdout.strip())
            show.claim("and so does whoever kept an earlier checkpoint", caught.returncode == 1)


@contextmanager
def _witness(folder: Path, key: VerifierKey) -> Iterator[str]:
    """A witness that knows our log; its URL."""
    config = ["--config", str(folder / "witness.json")]
    folder.mkdir()
    for command in (
        ["init", *config, "--name", "witness.demo/one"],
        ["add-log", *config, "--origin", key.name, "--vkey", str(key)],
    ):
        subprocess.run(
            [TOOLS / "aics-witness", *command], check=True, capture_output=True, timeout=DEADLINE_S
        )
    process = subprocess.Popen(
        [TOOLS / "aics-witness", "serve", *config, "--listen", "127.0.0.1:0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = process.stderr or ()
        yield next(match[0] for line in lines if (match := _LISTENING.search(line)))
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
        if process.stderr is not None:
            process.stderr.close()


def _submit(url: str, old_size: int, proof: Sequence[bytes], note: bytes) -> int:
    """The witness's answer to a checkpoint: HTTP's status."""
    request = urllib.request.Request(  # noqa: S310  a URL of our own, on loopback
        url + ADD_CHECKPOINT, data=add_checkpoint(old_size, proof, note)
    )
    # No proxy of the environment: the witness is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=DEADLINE_S) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def _rewrite(log: Path, forged: Path, size: int, old: bytes, new: bytes) -> bytes:
    """A copy of the log in which other bytes stand, with every tile made anew; its root."""
    source, entries = FolderSource(log), list[bytes]()
    while len(entries) < size:
        width = min(TILE_WIDTH, size - len(entries))
        entries += read_entries(source, TilePath(None, len(entries) // TILE_WIDTH, width))
    entries = [entry.replace(old, new) for entry in entries]
    hashes = [leaf_hash(entry) for entry in entries]
    for at in range(0, size, TILE_WIDTH):
        part = entries[at : at + TILE_WIDTH]
        _put(forged, TilePath(None, at // TILE_WIDTH, len(part)), pack_bundle(part))
    root, level = root_of(hashes), 0
    while hashes:
        for at in range(0, len(hashes), TILE_WIDTH):
            row = hashes[at : at + TILE_WIDTH]
            _put(forged, TilePath(level, at // TILE_WIDTH, len(row)), pack_tile(row))
        full = range(0, len(hashes) - TILE_WIDTH + 1, TILE_WIDTH)
        hashes = [root_of(hashes[at : at + TILE_WIDTH]) for at in full]
        level += 1
    return root


def _put(folder: Path, tile: TilePath, data: bytes) -> None:
    path = folder / tile.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _sign(stage: Backstage, forged: Path, text: str, key: VerifierKey) -> None:
    """As whoever holds the audit log's token and its PIN can."""
    hsm = stage.state / "hsm-audit"
    use_config(stage.state / "hsm" / "softhsm2.conf")

    async def sign() -> bytes:
        signer = await open_signer(token_uri("ironwork-dev-audit", "checkpoints", hsm / "pin"))
        try:
            return await signer.sign(text.encode())
        finally:
            await signer.close()

    note = format_note(text, [Signature.of(key, asyncio.run(sign()))])
    (forged / "checkpoint").write_bytes(note)


def _tiles(folder: Path, size: int) -> TileReader:
    source = FolderSource(folder)
    return TileReader(size, lambda tile: read_tile(source, tile))


def _verify(log: Path, key: Path, *more: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from ironwork_audit.cli.main import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, "verify", str(log), "--key", str(key), *more],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
