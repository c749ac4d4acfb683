"""The `ironwork` command against a whole service."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path

import pytest

from fixtures.server import ADMIN, AGENT, AUDITOR, TestService, spiffe
from ironwork_audit.ocsf import dump
from ironwork_audit.tlog import VerifierKey, leaf_hash, verify_consistency, verify_inclusion
from ironwork_audit.tlog.signed import open_checkpoint
from ironwork_server.app.devpki import write_client_profile
from ironwork_simulator import Behaviour


class Shell:
    """Runs the command as another process would, in a process of its own."""

    def __init__(self, service: TestService) -> None:
        self._service = service

    async def run(self, path: str, *argv: str, stdin: str = "") -> tuple[int, str, str]:
        service = self._service
        profile: Path = write_client_profile(
            service.folder / "profiles",
            path.rpartition("/")[2],
            service.ca.client_certificate(spiffe(path)),
            service.ca,
            target=service.target,
            workspace=None if path == AUDITOR else "acme",
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "from ironwork_client.cli.main import main; raise SystemExit(main())",
            *argv,
            "--profile",
            str(profile),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
        return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture
def shell(service: TestService) -> Shell:
    return Shell(service)


async def test_an_admin_keeps_keys_and_an_auditor_sees_it(
    service: TestService, shell: Shell
) -> None:
    """add, list, delete, audit list: the whole round, and the key is nowhere in its output."""
    key = service.simulator.make_key()
    added = await shell.run(ADMIN, "keys", "add", "--name", "first", "--json", stdin=f"{key}\n")
    assert added[0] == 0
    fields = json.loads(added[1])
    assert fields["mask"].endswith(key[-4:])
    again = await shell.run(ADMIN, "keys", "add", stdin=key)
    assert again[0] == 1
    listed = await shell.run(ADMIN, "keys", "list")
    assert fields["mask"] in listed[1]
    assert "first" in listed[1]
    deleted = await shell.run(ADMIN, "keys", "delete", fields["key_id"], "--yes")
    assert deleted[0] == 0
    assert "no key now" in deleted[1]
    gone = await shell.run(ADMIN, "keys", "delete", fields["key_id"], "--yes")
    assert gone[0] == 1
    trail = await shell.run(AUDITOR, "audit", "list", "--workspace", "acme")
    assert trail[0] == 0
    for operation in ("AddKey", "ListMasked", "DeleteKey"):
        assert operation in trail[1]
    lines = (await shell.run(AUDITOR, "audit", "list", "--json", "--operation", "AddKey"))[1]
    assert {json.loads(line)["event"]["api"]["operation"] for line in lines.splitlines()} == {
        "AddKey"
    }
    said = "".join(out + err for _, out, err in (added, again, listed, deleted, gone, trail))
    assert key not in said


async def test_the_exit_code_tells_refused_from_unavailable_from_forbidden(
    service: TestService, shell: Shell
) -> None:
    """1: Anthropic refuses the key. 3: Anthropic cannot be asked. 4: this identity may not."""
    invalid = "sk-ant-api03-" + "z" * 93 + "AA"
    code, out, err = await shell.run(ADMIN, "keys", "add", stdin=invalid)
    assert (code, out) == (1, "")
    assert invalid not in err
    overloaded = service.simulator.make_key(behaviour=Behaviour(status=529))
    code, _, err = await shell.run(ADMIN, "keys", "add", stdin=overloaded)
    assert (code, "ry again" in err) == (3, True)
    for argv in (("keys", "list"), ("audit", "list")):
        assert (await shell.run(AGENT, *argv))[0] == 4


async def test_an_auditor_checks_the_tree(service: TestService, shell: Shell) -> None:
    """checkpoint, inclusion, consistency, follow: what they print is enough to check the log."""
    await service.add()
    code, out, _ = await shell.run(AUDITOR, "audit", "checkpoint", "--json")
    assert code == 0
    tree = json.loads(out)
    key = VerifierKey.parse(tree["verifier_key"])
    head = open_checkpoint(tree["checkpoint"].encode(), key).checkpoint
    plain = (await shell.run(AUDITOR, "audit", "checkpoint"))[1]
    later = open_checkpoint(plain.encode(), key).checkpoint
    followed = await shell.run(
        AUDITOR, "audit", "follow", "--operation", "AddKey", "--limit", "2", "--start-index", "0"
    )
    assert followed[0] == 0
    first = json.loads(followed[1].splitlines()[0])
    size = str(head.size)
    proof = await shell.run(AUDITOR, "audit", "inclusion", str(first["index"]), "--size", size)
    hashes = [base64.b64decode(each) for each in json.loads(proof[1])["hashes"]]
    listed = await shell.run(AUDITOR, "audit", "list", "--json", "--operation", "AddKey")
    leaf = leaf_hash(dump(json.loads(listed[1].splitlines()[0])["event"]))
    verify_inclusion(first["index"], head.size, leaf, hashes, head.root)
    grown = await shell.run(AUDITOR, "audit", "consistency", size, "--size", str(later.size))
    hashes = [base64.b64decode(each) for each in json.loads(grown[1])["hashes"]]
    verify_consistency(head.size, later.size, head.root, later.root, hashes)
    beyond = await shell.run(AUDITOR, "audit", "inclusion", "0", "--size", str(2**60))
    assert (beyond[0], beyond[1], "size" in beyond[2]) == (1, "", True)
    assert (await shell.run(AUDITOR, "audit", "inclusion", "-1"))[0] == 2
    for argv in (("checkpoint",), ("follow",), ("consistency", "0")):
        assert (await shell.run(AGENT, "audit", *argv))[0] == 4
