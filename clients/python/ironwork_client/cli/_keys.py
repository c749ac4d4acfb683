"""`ironwork keys add|list|delete`."""

import argparse
import sys

from ironwork_client.cli import _output
from ironwork_client.cli._key_input import read_key
from ironwork_client.cli._usage import UsageError
from ironwork_client.keys import KeyClient, MaskedKey
from ironwork_client.profile import Profile


def add(arguments: argparse.Namespace, profile: Profile) -> int:
    key = read_key()
    with KeyClient(profile) as client:
        added = client.add(
            key,
            display_name=arguments.name,
            allow_different_organization=arguments.allow_different_organization,
        )
    if arguments.json:
        _output.print_json(_output.key_fields(added))
    else:
        console = _output.console()
        console.print(
            "Anthropic accepts the key. It is kept encrypted, and is the current key now."
        )
        _output.print_keys([added])
    return 0


def list_keys(arguments: argparse.Namespace, profile: Profile) -> int:
    with KeyClient(profile) as client:
        keys = list(client.list())
    if arguments.json:
        _output.print_json({"keys": [_output.key_fields(key) for key in keys]})
    elif keys:
        _output.print_keys(keys)
    else:
        _output.console().print(
            f"Workspace {profile.workspace} has no keys. Add one with: ironwork keys add"
        )
    return 0


def delete(arguments: argparse.Namespace, profile: Profile) -> int:
    with KeyClient(profile) as client:
        if not arguments.yes and not _confirmed(client, arguments.key):
            _output.console(stderr=True).print("Nothing was deleted.")
            return 1
        deleted = client.delete(arguments.key, cancel_in_flight=arguments.cancel_in_flight)
    if arguments.json:
        _output.print_json(_output.deleted_fields(deleted))
        return 0
    console = _output.console()
    console.print("The key is destroyed: no Claude request starts with it any more.")
    if deleted.cancelled_requests:
        console.print(f"Responses in flight that were ended: {deleted.cancelled_requests}.")
    if deleted.current is None:
        console.print("The workspace has no key now; its agents are refused until one is added.")
    else:
        console.print("Current now:")
        _output.print_keys([deleted.current])
    return 0


def _confirmed(client: KeyClient, name_or_id: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("delete asks before it destroys a key; without a terminal, add --yes.")
    console = _output.console(stderr=True)
    key = _find(client, name_or_id)
    if key is not None:
        # One that is not found is the service's to refuse, after the same question.
        _output.print_keys([key], stderr=True)
    console.print("Destroy this key? It cannot be brought back. [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _find(client: KeyClient, name_or_id: str) -> MaskedKey | None:
    wanted = {name_or_id}
    return next((key for key in client.list() if wanted & {key.name, key.key_id}), None)
