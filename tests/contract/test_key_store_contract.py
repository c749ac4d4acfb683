"""What every KeyStore does. Runs against each kind of store there is."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from fixtures.stores import (
    NOON,
    SqliteStores,
    added,
    plain_add,
    replay,
    stored_key,
    wrapped_key,
)
from ironwork_server.core.errors import InvalidRequest, PreconditionFailed
from ironwork_server.core.ports import (
    AlreadyAnswered,
    KeyExists,
    OrganizationDiffers,
    TooManyKeys,
)
from ironwork_server.core.values import KeyState, Replay, StoredKey
from ironwork_server.store import Store

# --- reading what was written --------------------------------------------------------------------


async def test_a_new_store_holds_nothing(store: Store) -> None:
    """A new store answers every read with nothing, and is well."""
    assert await store.current("acme") is None
    assert await store.get("acme", "k") is None
    assert await store.find("acme", b"f") is None
    assert await store.page("acme", before_sequence=None, limit=10) == []
    assert await store.find_replay("acme", "AddKey", "r") is None
    assert await store.pepper() is None
    assert (store.marker, len(store.installation_id)) == ("", 36)
    await store.check()


async def test_a_row_comes_back_exactly(store: Store) -> None:
    """A row is read back equal in every field, by every read."""
    key = stored_key(
        display_name="Ключ “one”\t😀",
        state=KeyState.REJECTED_BY_ANTHROPIC,
        organization_id="org-1",
        created_at=NOON.replace(microsecond=999_999),
        validated_at=NOON.replace(year=9999, microsecond=1),
        last_used_at=NOON.replace(year=1969),
    )
    await store.add(key, **plain_add())
    assert await store.current("acme") == key
    assert await store.get("acme", key.key_id) == key
    assert await store.find("acme", key.fingerprint) == key
    assert await store.page("acme", before_sequence=None, limit=10) == [key]


async def test_current_is_the_greatest_sequence(store: Store) -> None:
    """The current key is the one with the greatest sequence, whatever the clocks said and
    whichever was added last.
    """
    newest = stored_key(sequence=30, created_at=NOON - timedelta(days=900))
    for key in (stored_key(sequence=10), newest, stored_key(sequence=20)):
        await store.add(key, **plain_add())
    assert await store.current("acme") == newest


async def test_pages_are_newest_first(store: Store) -> None:
    """Pages run from the newest to the oldest, each row once, and end."""
    keys = [await added(store) for _ in range(7)]
    seen: list[StoredKey] = []
    before = None
    while page := await store.page("acme", before_sequence=before, limit=3):
        assert len(page) <= 3
        seen += page
        before = page[-1].sequence
    assert seen == keys[::-1]
    assert await store.page("acme", before_sequence=None, limit=0) == []


async def test_a_negative_limit_is_refused(store: Store) -> None:
    """A page never means "all": a limit below 0 is an error."""
    with pytest.raises(InvalidRequest):
        await store.page("acme", before_sequence=None, limit=-1)


async def test_workspaces_are_apart(store: Store) -> None:
    """Nothing of one workspace is read, changed, counted or compared in another."""
    mine = await added(store, stored_key("acme", organization_id="org-1"))
    theirs = stored_key(
        "other", key_id=mine.key_id, fingerprint=mine.fingerprint, organization_id="org-2"
    )
    await store.add(theirs, **plain_add(max_keys=1, allow_different_organization=False))
    assert await store.current("acme") == mine
    assert await store.current("other") == theirs
    assert await store.delete("other", mine.key_id, replay=None) == (True, None)
    assert await store.get("acme", mine.key_id) == mine


async def test_what_cannot_be_stored_is_refused(store: Store) -> None:
    """A text that is no Unicode and a number above 64 bits are refused, and not quoted."""
    for key in (stored_key("acme", mask="canary\udc80"), stored_key(sequence=2**63)):
        with pytest.raises(InvalidRequest) as refused:
            await store.add(key, **plain_add())
        assert refused.value.reason == "VALUE_NOT_STORABLE"
        assert "canary" not in str(refused.value)
        assert refused.value.__suppress_context__
    with pytest.raises(ValueError, match="time zone"):
        await store.add(stored_key(created_at=NOON.replace(tzinfo=None)), **plain_add())
    assert await store.current("acme") is None


# --- adding --------------------------------------------------------------------------------------


async def test_the_checks_of_add_come_in_their_order(store: Store) -> None:
    """Where several things stand against an add, the first of them in the contract's order is
    told; where nothing does any more, it is added.
    """
    held = stored_key(organization_id="org-1")
    kept = replay("r1")
    await store.add(held, **plain_add(replay=kept))
    again = stored_key(fingerprint=held.fingerprint, organization_id="org-2")

    with pytest.raises(AlreadyAnswered) as answered:
        await store.add(again, replay=replay("r1"), max_keys=1, allow_different_organization=False)
    assert answered.value.replay == kept
    with pytest.raises(KeyExists) as exists:
        await store.add(again, replay=replay("r2"), max_keys=1, allow_different_organization=False)
    assert exists.value.key_id == held.key_id
    other = stored_key(organization_id="org-2")
    with pytest.raises(TooManyKeys):
        await store.add(other, replay=replay("r2"), max_keys=1, allow_different_organization=False)
    with pytest.raises(OrganizationDiffers) as differs:
        await store.add(other, replay=replay("r2"), max_keys=2, allow_different_organization=False)
    assert differs.value.organizations == {"org-1"}
    assert await store.find_replay("acme", "AddKey", "r2") is None

    await store.add(other, replay=replay("r2"), max_keys=2, allow_different_organization=True)
    assert await store.current("acme") == other


@pytest.mark.parametrize(
    ("held", "new", "differs"),
    [
        ((), "org-1", False),
        (("org-1",), "org-1", False),
        (("org-1",), "org-2", True),
        (("org-1",), "", False),
        (("",), "org-1", False),
        (("", "org-1"), "org-2", True),
        (("org-1", "org-2"), "org-2", False),
        (("org-1", "org-2"), "org-3", True),
    ],
)
async def test_organisations_are_compared_where_they_are_named(
    store: Store, held: tuple[str, ...], new: str, differs: bool
) -> None:
    """A key of an organisation that none of the workspace's keys has is refused; keys without a
    named organisation neither refuse nor are refused.
    """
    for organization in held:
        await added(store, stored_key(organization_id=organization))
    adding = store.add(
        stored_key(organization_id=new),
        replay=None,
        max_keys=9,
        allow_different_organization=False,
    )
    if differs:
        with pytest.raises(OrganizationDiffers) as refused:
            await adding
        assert refused.value.organizations == set(held) - {""}
    else:
        await adding


async def test_the_last_organisation_outlives_the_keys(store: Store) -> None:
    """A workspace without keys is still of the organisation that its last named key was of: else
    deleting all keys would change it unsaid. Another workspace has its own.
    """

    async def add(organization: str, *, allow: bool = False, workspace: str = "acme") -> StoredKey:
        key = stored_key(workspace, organization_id=organization)
        await store.add(key, replay=None, max_keys=9, allow_different_organization=allow)
        return key

    first = await add("org-1")
    unnamed = await add("")
    for key in (first, unnamed):
        await store.delete("acme", key.key_id, replay=None)
    for _ in range(2):
        with pytest.raises(OrganizationDiffers) as refused:
            await add("org-2")
        assert refused.value.organizations == {"org-1"}
    await add("")
    with pytest.raises(OrganizationDiffers):
        await add("org-2")
    await add("org-2", workspace="globex")
    second = await add("org-2", allow=True)
    await store.delete("acme", second.key_id, replay=None)
    with pytest.raises(OrganizationDiffers) as refused:
        await add("org-1")
    assert refused.value.organizations == {"org-2"}
    await add("org-2")


async def test_an_id_or_a_sequence_is_used_once(store: Store) -> None:
    """A key id used again in its workspace, or a sequence used again anywhere, is refused."""
    key = await added(store)
    for clash in (
        stored_key(key_id=key.key_id, sequence=key.sequence + 1),
        stored_key("other", sequence=key.sequence),
    ):
        with pytest.raises(PreconditionFailed) as refused:
            await store.add(clash, **plain_add())
        assert refused.value.reason == "STORE_CONFLICT"
    assert await store.page("acme", before_sequence=None, limit=9) == [key]


async def test_a_hundred_adds_of_one_key_make_one_row(stores: SqliteStores, url: str) -> None:
    """Of 100 simultaneous adds of one key, over several stores on one database, one succeeds."""
    several = [stores.open(url) for _ in range(3)]
    twins = [stored_key(fingerprint=b"f" * 32) for _ in range(100)]
    outcomes = await asyncio.gather(
        *(
            several[number % 3].add(twin, **plain_add(replay=replay(f"r{number}")))
            for number, twin in enumerate(twins)
        ),
        return_exceptions=True,
    )
    (winner,) = [twin for twin, outcome in zip(twins, outcomes, strict=True) if outcome is None]
    losers = [outcome for outcome in outcomes if outcome is not None]
    assert all(isinstance(loser, KeyExists) for loser in losers)
    assert {loser.key_id for loser in losers if isinstance(loser, KeyExists)} == {winner.key_id}
    assert await several[0].page("acme", before_sequence=None, limit=200) == [winner]


async def test_simultaneous_adds_do_not_pass_the_limit(stores: SqliteStores, url: str) -> None:
    """However many add at once, a workspace never holds more keys than it may."""
    several = [stores.open(url) for _ in range(2)]
    outcomes = await asyncio.gather(
        *(several[n % 2].add(stored_key(), **plain_add(max_keys=5)) for n in range(20)),
        return_exceptions=True,
    )
    assert sum(outcome is None for outcome in outcomes) == 5
    assert sum(isinstance(outcome, TooManyKeys) for outcome in outcomes) == 15
    assert len(await several[0].page("acme", before_sequence=None, limit=99)) == 5


# --- replays -------------------------------------------------------------------------------------


async def test_a_replay_is_found_by_workspace_method_and_id(store: Store) -> None:
    """A kept answer belongs to one workspace, one method and one request id."""
    kept = replay("r1")
    await store.add(stored_key(), **plain_add(replay=kept))
    assert await store.find_replay("acme", "AddKey", "r1") == kept
    assert await store.find_replay("other", "AddKey", "r1") is None
    assert await store.find_replay("acme", "DeleteKey", "r1") is None
    assert await store.find_replay("acme", "AddKey", "r2") is None


async def test_replays_end_after_seven_days(stores: SqliteStores, url: str) -> None:
    """Answers older than seven days are dropped by later writes, a bounded number each; younger
    ones stay.
    """
    now = NOON
    store = stores.open(url, clock=lambda: now)
    for number in range(130):
        old = replay(f"old{number}", created_at=NOON + timedelta(seconds=number))
        await store.add(stored_key(), **plain_add(replay=old))
    await store.add(
        stored_key(), **plain_add(replay=replay("new", created_at=NOON.replace(day=29)))
    )

    async def kept() -> int:
        found = [await store.find_replay("acme", "AddKey", f"old{n}") for n in range(130)]
        return sum(one is not None for one in found)

    now = NOON + timedelta(days=7)
    await store.record_uses({})
    assert await kept() == 130
    now = NOON + timedelta(days=7, seconds=1000)
    await store.add(stored_key(), **plain_add())
    assert await kept() == 30
    await store.record_uses({})
    assert await kept() == 0
    assert await store.find_replay("acme", "AddKey", "new") is not None


# --- deleting ------------------------------------------------------------------------------------


async def test_delete_tells_which_key_is_current(store: Store) -> None:
    """Deleting returns the newest key that remains, or none; a key that is not there is not
    deleted and changes nothing.
    """
    old, middle, new = [await added(store) for _ in range(3)]
    assert await store.delete("acme", "unknown", replay=None) == (False, new)
    assert await store.delete("acme", new.key_id, replay=None) == (True, middle)
    assert await store.current("acme") == middle
    assert await store.delete("acme", old.key_id, replay=None) == (True, middle)
    assert await store.delete("acme", middle.key_id, replay=None) == (True, None)
    assert await store.delete("acme", middle.key_id, replay=None) == (False, None)
    assert await store.current("acme") is None
    assert await store.find("acme", new.fingerprint) is None


async def test_a_deleted_key_can_be_added_again(store: Store) -> None:
    """After its deletion the same key is new: nothing remembers its fingerprint."""
    key = await added(store)
    await store.delete("acme", key.key_id, replay=None)
    again = await added(store, stored_key(fingerprint=key.fingerprint))
    assert await store.current("acme") == again


async def test_delete_keeps_the_answer_it_is_given(store: Store) -> None:
    """The answer is made from the key that is current afterwards, kept with the deletion, and
    given to the same request again, before anything else is looked at.
    """
    first, second = await added(store), await added(store)
    seen: list[StoredKey | None] = []

    def answer(current: StoredKey | None) -> Replay:
        seen.append(current)
        return replay("d1", method="DeleteKey", answer=b"" if current is None else b"left")

    assert await store.delete("acme", second.key_id, replay=answer) == (True, first)
    assert seen == [first]
    kept = await store.find_replay("acme", "DeleteKey", "d1")
    assert kept is not None
    assert kept.answer == b"left"
    for key_id in (second.key_id, first.key_id):
        with pytest.raises(AlreadyAnswered) as answered:
            await store.delete("acme", key_id, replay=answer)
        assert answered.value.replay == kept
    assert await store.current("acme") == first


async def test_no_answer_is_kept_where_nothing_was_deleted(store: Store) -> None:
    """A deletion that finds no row keeps no answer: the same request may succeed later."""
    outcome = await store.delete("acme", "k", replay=lambda _: replay("d1", method="DeleteKey"))
    assert outcome == (False, None)
    assert await store.find_replay("acme", "DeleteKey", "d1") is None


async def test_a_failing_answer_deletes_nothing(store: Store) -> None:
    """Where the answer cannot be made, its error passes and the row stays."""
    key = await added(store)

    def fail(_: StoredKey | None) -> Replay:
        raise LookupError("the caller's own")

    with pytest.raises(LookupError, match="the caller's own"):
        await store.delete("acme", key.key_id, replay=fail)
    assert await store.current("acme") == key


async def test_simultaneous_deletes_of_one_key_count_once(stores: SqliteStores, url: str) -> None:
    """Of several simultaneous deletions of one key, one finds it."""
    several = [stores.open(url) for _ in range(2)]
    key = await added(several[0])
    outcomes = await asyncio.gather(
        *(several[n % 2].delete("acme", key.key_id, replay=None) for n in range(6))
    )
    assert sorted(found for found, _ in outcomes) == [False] * 5 + [True]


# --- the small writes ----------------------------------------------------------------------------


async def test_the_state_is_set(store: Store) -> None:
    """set_state changes that key's state and nothing else; an unknown key is ignored."""
    key, other = await added(store), await added(store)
    await store.set_state("acme", key.key_id, KeyState.REJECTED_BY_ANTHROPIC)
    await store.set_state("acme", "unknown", KeyState.REJECTED_BY_ANTHROPIC)
    await store.set_state("other", other.key_id, KeyState.REJECTED_BY_ANTHROPIC)
    rejected = replace(key, state=KeyState.REJECTED_BY_ANTHROPIC)
    assert await store.get("acme", key.key_id) == rejected
    assert await store.get("acme", other.key_id) == other


async def test_uses_never_move_back(store: Store) -> None:
    """The last use only moves forward; rows that are gone are ignored."""
    key, other = await added(store), await added(store)
    name = ("acme", key.key_id)
    for given, kept in ((NOON, 0), (NOON - timedelta(microseconds=1), 0), (NOON.max, None)):
        when = given if kept is not None else NOON + timedelta(microseconds=1)
        await store.record_uses({name: when, ("acme", "gone"): when})
        found = await store.get(*name)
        assert found is not None
        assert found.last_used_at == (NOON if kept is not None else when)
    assert await store.get("acme", other.key_id) == other
    await store.record_uses({})


async def test_the_first_pepper_stays(stores: SqliteStores, url: str) -> None:
    """Whoever is first makes the pepper; everyone gets that one, also later."""
    several = [stores.open(url) for _ in range(3)]
    offered = [wrapped_key(version) for version in range(1, 4)]
    got = await asyncio.gather(
        *(one.create_pepper(pepper) for one, pepper in zip(several, offered, strict=True))
    )
    assert got[0] in offered
    assert got == [got[0]] * 3
    assert await several[1].pepper() == got[0]
