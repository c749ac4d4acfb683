"""One witness over HTTP: each answer that it can give, and those that it should not."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fixtures.tlog_made import (
    KEY,
    ORIGIN,
    WITNESS,
    WITNESS_KEY,
    made_entry,
    signed_checkpoint,
)
from ironwork_audit.log import AppendLog
from ironwork_audit.tlog import (
    Checkpoint,
    Signature,
    cosigned_message,
    pack_cosignature,
    parse_note,
    verify_consistency,
)
from ironwork_audit.tlog.note import from_base64
from ironwork_audit.tlog.signed import open_checkpoint
from ironwork_audit.witness import MAX_ANSWER_BYTES, checked_url, cosigned
from ironwork_audit.witness_submission import WitnessConflict, WitnessFailed
from ironwork_server.journal.witness import Witness
from ironwork_server.journal.witness_files import WitnessFiles
from ironwork_server.journal.witness_http import WitnessEndpoint


class ModelWitness:
    """An HTTP server that checks and signs as tlog-witness says, unless answers stand in `says`:
    raw bytes, taken one by one. heard: the requests' bodies. hold: while cleared nobody is
    answered.
    """

    def __init__(self) -> None:
        self.says: list[bytes] = []
        self.heard: list[bytes] = []
        self.paths: list[str] = []
        self.size, self.root = 0, b""
        self.port = 0
        self.hold = asyncio.Event()
        self.hold.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.paths.append(head.split(b" ")[1].decode())
                length = next(
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                )
                body = await reader.readexactly(length)
                self.heard.append(body)
                await self.hold.wait()
                writer.write(self.says.pop(0) if self.says else self._answer(body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, body: bytes) -> bytes:
        head, _, note = body.partition(b"\n\n")
        first, *proof = head.decode().split("\n")
        text = parse_note(note).text
        checkpoint = Checkpoint.parse(text)
        if first != f"old {self.size}":
            return said(409, b"%d\n" % self.size)
        if self.size:
            hashes = [from_base64(line, "proof") for line in proof]
            try:
                verify_consistency(self.size, checkpoint.size, self.root, checkpoint.root, hashes)
            except ValueError:
                return said(422)
        self.size, self.root = checkpoint.size, checkpoint.root
        value = pack_cosignature(1_800_000_000, WITNESS.sign(cosigned_message(text, 1_800_000_000)))
        return said(200, cosigned(note, [Signature.of(WITNESS_KEY, value)])[len(note) :])


def said(status: int, body: bytes = b"", *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 %d Said" % status, b"content-length: %d" % len(body), *headers, b"", body]
    return b"\r\n".join(lines)


@asynccontextmanager
async def serving(model: ModelWitness, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
    server = await asyncio.start_server(model.serve, "127.0.0.1", 0, ssl=tls)
    model.port = server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        model.hold.set()
        server.close()


@pytest.fixture
async def model() -> AsyncIterator[ModelWitness]:
    model = ModelWitness()
    async with serving(model):
        yield model


class Log:
    """A log whose checkpoints a test takes, with what witnesses need of it."""

    def __init__(self, folder: Path) -> None:
        self.engine = AppendLog.open(folder, ORIGIN)
        self.published: list[bytes] = []
        self.files = WitnessFiles(folder, self.engine, self._republish)

    async def _republish(self, note: bytes) -> None:
        self.published.append(note)

    def grow(self, count: int = 3) -> bytes:
        self.engine.append([made_entry] * count)
        tree = self.engine.integrate()
        return signed_checkpoint(tree.size, tree.root)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


@pytest.fixture
async def witness(model: ModelWitness) -> AsyncIterator[Witness]:
    endpoint = WitnessEndpoint(f"http://127.0.0.1:{model.port}/w/")
    yield Witness(endpoint, WITNESS_KEY, KEY)
    await endpoint.close()


async def submit(witness: Witness, note: bytes, log: Log) -> Signature:
    async with asyncio.timeout(30):
        return await witness.submit(note, log.files.prove)


async def test_growth_is_signed(model: ModelWitness, witness: Witness, log: Log) -> None:
    """Each checkpoint comes with a proof from the one before, and its signature is kept."""
    for _ in range(3):
        note = log.grow()
        signature = await submit(witness, note, log)
        assert witness.note is not None
        assert signature.is_of(WITNESS_KEY)
        opened = open_checkpoint(witness.note, KEY, [WITNESS_KEY])
        assert (opened.checkpoint.size, witness.size) == (model.size, model.size)
        assert witness.timestamp == opened.cosignatures[0].timestamp == 1_800_000_000
    assert [body.split(b"\n")[0] for body in model.heard] == [b"old 0", b"old 3", b"old 6"]
    assert set(model.paths) == {"/w/add-checkpoint"}
    await submit(witness, note, log)  # the same again, with an empty proof
    assert model.heard[-1].startswith(b"old 9\n\n")


async def test_the_witness_tells_where_it_is(
    model: ModelWitness, witness: Witness, log: Log
) -> None:
    """Whoever lost what was kept goes on from the size in the 409."""
    await submit(witness, log.grow(), log)
    fresh = Witness(witness._endpoint, WITNESS_KEY, KEY)
    await submit(fresh, log.grow(), log)
    assert [body.split(b"\n")[0] for body in model.heard] == [b"old 0", b"old 0", b"old 3"]
    assert (fresh.size, fresh.forgot) == (6, False)


async def test_a_witness_that_forgot_is_noticed(
    model: ModelWitness, witness: Witness, log: Log
) -> None:
    """A 409 with less than it had signed is told, and the log goes on from there."""
    await submit(witness, log.grow(), log)
    model.size = 0
    await submit(witness, log.grow(), log)
    assert (witness.size, witness.forgot) == (6, True)


async def test_a_kept_checkpoint_is_gone_on_from(
    model: ModelWitness, witness: Witness, log: Log
) -> None:
    """After a restart the first request already names the witness's size."""
    await submit(witness, log.grow(), log)
    fresh = Witness(witness._endpoint, WITNESS_KEY, KEY)
    fresh.resume(witness.note or b"")
    await submit(fresh, log.grow(), log)
    assert model.heard[-1].startswith(b"old 3\n")
    with pytest.raises(ValueError, match="not signed by"):
        fresh.resume(signed_checkpoint(1, b"r" * 32))


async def test_another_history_is_a_conflict(
    model: ModelWitness, witness: Witness, log: Log, tmp_path: Path
) -> None:
    """A log rewritten and signed with our own key is refused: 422, or 409 by a witness that still
    speaks of the size that it was given.
    """
    await submit(witness, log.grow(), log)
    other = Log(tmp_path / "other")
    other.engine.append([lambda _: b"another"] * 6)
    tree = other.engine.integrate()
    rewritten = signed_checkpoint(tree.size, tree.root)
    with pytest.raises(WitnessConflict, match="WITNESS_CONFLICT"):
        await submit(witness, rewritten, other)
    model.says = [said(409, b"3\n")]
    with pytest.raises(WitnessConflict, match="WITNESS_CONFLICT"):
        await submit(witness, rewritten, other)
    assert (witness.size, model.size) == (3, 3)


async def test_a_shorter_log_is_a_conflict(
    model: ModelWitness, witness: Witness, log: Log, tmp_path: Path
) -> None:
    """A witness that has signed more than there is now saw what was rolled back."""
    await submit(witness, log.grow(5), log)
    fresh = Witness(witness._endpoint, WITNESS_KEY, KEY)
    shorter = Log(tmp_path / "shorter")
    for each in (witness, fresh):
        with pytest.raises(WitnessConflict, match="WITNESS_AHEAD"):
            await submit(each, shorter.grow(1), shorter)


ANSWERS = {
    "WITNESS_REFUSED": [said(400), said(418), said(204)],
    "WITNESS_KEY_UNKNOWN": [said(403)],
    "WITNESS_LOG_UNKNOWN": [said(404)],
    "WITNESS_BUSY": [said(429), said(500), said(503)],
    "WITNESS_REDIRECTED": [said(302, b"", b"location: http://127.0.0.1:1/elsewhere")],
    "WITNESS_ANSWER_WRONG": [said(409, b"many\n"), said(200, b"x" * (MAX_ANSWER_BYTES + 1))],
    "WITNESS_COSIGNATURE_WRONG": [said(200), said(200, b"\xff\n"), said(200, b"no line\n")],
    "WITNESS_UNREACHABLE": [b"", b"what?\r\n\r\n", said(200, b"cut")[:-1]],
}


@pytest.mark.parametrize(
    ("reason", "answer"), [(name, answer) for name, all_ in ANSWERS.items() for answer in all_]
)
async def test_every_answer_has_its_reason(
    reason: str, answer: bytes, witness: Witness, model: ModelWitness, log: Log
) -> None:
    """Nothing of what the witness wrote is repeated, and the next attempt is whole again."""
    note = log.grow()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        endpoint = WitnessEndpoint(f"http://127.0.0.1:{port}")
        with pytest.raises(WitnessFailed) as failed:
            await submit(Witness(endpoint, WITNESS_KEY, KEY), note, log)
        await endpoint.close()
    assert failed.value.reason == reason
    assert not isinstance(failed.value, WitnessConflict)
    await submit(witness, note, log)


async def test_two_409s_are_somebody_else(model: ModelWitness, witness: Witness, log: Log) -> None:
    """A witness whose size changes between two requests is asked again later, not for ever."""
    note = log.grow(5)
    model.says = [said(409, b"2\n"), said(409, b"3\n")]
    with pytest.raises(WitnessFailed, match="WITNESS_BUSY"):
        await submit(witness, note, log)
    assert len(model.heard) == 2


async def test_a_closed_connection_is_made_anew(
    model: ModelWitness, witness: Witness, log: Log
) -> None:
    """A witness that went away and came back is reached again."""
    await submit(witness, log.grow(), log)
    gone = WitnessEndpoint(f"http://127.0.0.1:{model.port}")
    model.says = [b""]
    model.hold.clear()
    task = asyncio.create_task(gone.add_checkpoint(b"old 0\n\n"))
    async with asyncio.timeout(30):
        while len(model.heard) < 2:  # noqa: ASYNC110 - the model tells nobody
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    model.hold.set()
    model.says = []
    await gone.close()
    await submit(witness, log.grow(), log)


async def test_a_proof_that_cannot_be_read_is_no_alarm(witness: Witness, log: Log) -> None:
    """A disk that fails is told as such, and nothing is sent."""
    await submit(witness, log.grow(300), log)
    note = log.grow(300)
    for tile in (log.engine._folder / "tile" / "0").rglob("*"):
        if tile.is_file():
            tile.unlink()
    with pytest.raises(WitnessFailed, match="WITNESS_PROOF_UNAVAILABLE"):
        await submit(witness, note, log)


async def test_https_is_verified(log: Log, dev_ca: object, tmp_path: Path) -> None:
    """A witness is who its certificate says; an unknown root is as good as no witness."""
    from fixtures.pki import write_server_files
    from ironwork_server.app.devpki import DevCa

    assert isinstance(dev_ca, DevCa)
    files = write_server_files(tmp_path, dev_ca)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(files.certificate, files.private_key)
    trust = ssl.create_default_context(cadata=dev_ca.certificate_pem.decode())
    model, note = ModelWitness(), log.grow()
    async with serving(model, tls):
        url = f"https://localhost:{model.port}"
        unknown, known = WitnessEndpoint(url), WitnessEndpoint(url, trust=trust)
        with pytest.raises(WitnessFailed, match="WITNESS_UNREACHABLE"):
            await submit(Witness(unknown, WITNESS_KEY, KEY), note, log)
        await submit(Witness(known, WITNESS_KEY, KEY), note, log)
        await unknown.close()
        await known.close()


async def test_the_environment_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch, model: ModelWitness, log: Log
) -> None:
    """Proxies of the environment are not asked: checkpoints go where the settings say."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    endpoint = WitnessEndpoint(f"http://127.0.0.1:{model.port}")
    await submit(Witness(endpoint, WITNESS_KEY, KEY), log.grow(), log)
    await endpoint.close()


GOOD = ["https://w.example/x/", "http://127.0.0.1:7380", "http://[::1]:7380", "http://localhost"]
BAD: Sequence[str] = [
    "http://w.example", "http://10.0.0.1", "ftp://127.0.0.1", "w.example", "https://",
    "https://user@w.example", "https://w.example/?q", "https://w.example/#f", "https://w:99999",
]  # fmt: skip


def test_which_urls_are_used() -> None:
    """https, or http to this machine; nothing that hides a credential or a query."""
    assert [checked_url(url) for url in GOOD] == [url.rstrip("/") for url in GOOD]
    for url in BAD:
        with pytest.raises(ValueError, match=r"\w"):
            checked_url(url)
