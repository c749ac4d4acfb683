"""`ironwork-audit report`: what it counts, what it finds, and that nothing in it is ever markup."""

import re
from collections.abc import Iterator
from datetime import timedelta
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.report_made import MadeLog
from fixtures.tlog_made import KEY, NOW, WITNESS_KEY, call_event, rendered, write_log
from ironwork_audit import EVENT, INTENT, OUTCOME
from ironwork_audit.cli.main import main
from ironwork_audit.report import bounded
from ironwork_audit.report.make import gather
from ironwork_audit.report.page import Standing, render_page
from ironwork_audit.report.unusual import RULES, Unusual
from ironwork_audit.report.usage import DAY_MS, HOUR_MS, Usage

NOW_MS = int(NOW.timestamp() * 1000)
OTHER = type(KEY)("other.test/b", KEY.type, KEY.public)
Gathered = tuple[Usage, Unusual]


class Log:
    """Entries, by minutes after NOW."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []

    def add(self, minute: float, **values: object) -> int:
        index = len(self.entries)
        changes = {"time": NOW + timedelta(minutes=minute)} | values
        self.entries.append(rendered(call_event(index, **changes), index))  # type: ignore[arg-type]
        return index

    def event(self, minute: float, operation: str, **values: object) -> int:
        plain = {
            "phase": EVENT,
            "operation": operation,
            "success": True,
            "details": {},
            "principal": "spiffe://t/x",
        }
        return self.add(minute, **(plain | values))

    def call(self, minute: float, **values: object) -> None:
        common = {
            "principal": "spiffe://t/ws/acme/agent/a",
            "workspace": "acme",
            "key_id": "k-1",
        } | values
        success = common.pop("success", True)
        details = common.pop("details", {"input_tokens": 10, "output_tokens": 1})
        intent = self.add(minute, **common, phase=INTENT, success=None, details={})
        self.add(
            minute,
            **common,
            phase=OUTCOME,
            intent_index=intent,
            success=success,
            reason="" if success else "UPSTREAM_CUT",
            details=details,
        )

    def gathered(self, start_minute: float = 0, end_minute: float = 60 * 24 * 60) -> Gathered:
        start_ms = NOW_MS + int(start_minute * 60_000)
        return gather([enumerate(self.entries)], start_ms, NOW_MS + int(end_minute * 60_000))


def page_of(gathered: Gathered, *standings: Standing) -> str:
    usage, unusual = gathered
    end_ms = usage.start_ms + 30 * DAY_MS
    return render_page(
        usage, unusual, standings, start_ms=usage.start_ms, end_ms=end_ms, made_ms=end_ms
    )


def test_who_used_which_key_how_often() -> None:
    """Each call counts once, at its outcome; refusals that were counted together count as many."""
    log = Log()
    log.call(1)
    log.call(2)
    log.call(3, success=False, details={})
    log.event(
        4,
        "WithKey",
        workspace="acme",
        key_id="",
        principal="spiffe://t/b",
        success=False,
        reason="RATE_LIMITED",
        details={"count": 41, "window_s": 10},
    )
    log.call(60 * 24 * 90)
    usage, _ = log.gathered()
    first = usage.by_pair.rows["spiffe://t/ws/acme/agent/a", "acme", "k-1"]
    assert (first.completed, first.failed, first.refused) == (2, 1, 0)
    assert (first.input, first.output) == (20, 2)
    assert usage.by_pair.rows["spiffe://t/b", "acme", ""].refused == 41
    assert usage.total.requests == 44
    assert usage.refusals.rows["WithKey", "RATE_LIMITED"].count == 41
    assert usage.buckets.rows[0].requests == 44
    # NOW is a Monday at noon.
    assert (usage.hours[12], sum(usage.hours)) == (44, 44)


def found(gathered: Gathered) -> dict[str, int]:
    return dict(gathered[1].counts)


@pytest.mark.parametrize(
    ("rule", "operation", "values"),
    [
        ("restored", "WithKey", {"success": False, "reason": "KEY_WAS_DELETED"}),
        ("echoed", "WithKey", {"success": False, "reason": "KEY_ECHOED"}),
        ("damaged", "WithKey", {"success": False, "reason": "KEY_RECORD_DAMAGED"}),
        ("organization", "organization.changed", {}),
        ("generate", "hsm.generate", {}),
        ("hsm", "hsm.probe", {"success": False, "reason": "MASTER_KEY_UNAVAILABLE"}),
        ("journal", "journal.recovered", {}),
        ("access", "policy.reloaded", {}),
    ],
)
def test_what_stands_out_by_itself(rule: str, operation: str, values: dict[str, object]) -> None:
    """Each such entry of the period is told by the rule that it falls under, and by its place."""
    log = Log()
    log.event(-10, operation, **values)
    log.event(10, operation, **values)
    gathered = log.gathered()
    assert found(gathered) == {rule: 1}
    assert gathered[1].found[rule][0].place == "keys.test/a entry 1"
    assert RULES[rule].title in page_of(gathered)


def test_calls_without_an_outcome() -> None:
    """An intent is open where its outcome is in no later entry, also after the period."""
    log = Log()
    log.add(1, phase=INTENT, success=None)
    intent = log.add(2, phase=INTENT, success=None)
    log.add(60 * 24 * 61, phase=OUTCOME, intent_index=intent, success=True)
    assert found(log.gathered()) == {"open": 1}


def test_new_principals_and_first_uses() -> None:
    """A principal is new where the log knows a time before the period; a key's first use by one
    more principal is told where others had used it for more than a day.
    """
    log = Log()
    log.call(0)
    log.call(60 * 25)
    log.call(60 * 26, principal="spiffe://t/b")
    assert found(log.gathered(0)) == {"pair": 1}
    assert found(log.gathered(60 * 25.5)) == {"pair": 1, "principal": 1}
    log.call(60 * 27, principal="spiffe://t/b")
    assert found(log.gathered(60 * 26.5)) == {}


def test_unusual_hours() -> None:
    """An hour of the day that a workspace never had is told after a week of use, once."""
    log = Log()
    for day in range(9):
        log.call(day * 24 * 60)
    log.call(8 * 24 * 60 + 180)
    log.call(9 * 24 * 60 + 180)
    gathered = log.gathered()
    assert found(gathered) == {"hour": 1}
    assert gathered[1].found["hour"][0].text.startswith("acme: 15:00 to 16:00 UTC")


def test_spikes() -> None:
    """An hour with 100 requests, and five times the mean of a day's active hours, is told once."""
    log = Log()
    for hour in range(25):
        for _ in range(10):
            log.call(hour * 60)
    assert found(log.gathered()) == {}
    for _ in range(150):
        log.call(26 * 60)
    assert found(log.gathered())["spike"] == 1


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the variety, rows are bounded: what is beyond is in one row of others, and no
    request is lost from the sums.
    """
    log = Log()
    for number in range(60):
        log.call(number, principal=f"spiffe://t/{number}", workspace=f"w-{number}")
    monkeypatch.setattr(bounded.Rows.__init__, "__defaults__", (30,))
    usage, unusual = log.gathered()
    assert len(usage.by_pair.rows) == 30
    assert usage.by_pair.others is not None
    assert usage.by_pair.others.requests == 30
    page = page_of((usage, unusual))
    # 25 rows are shown; 5 that are not, and the row of others, are the 6 of the last.
    assert "<td>others</td><td>6 rows</td>" in page
    assert "35" in page.split("<td>6 rows</td>")[1][:40]


# What a client may claim, or a certificate or a setting hold, that a page must not take for markup.
HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg/onload=alert(1)>',
    "</style><script>",
    "{{ 7*7 }}{% raw %}",
    "javascript:alert(1)",
    "' style='x:expression(1)",
    "&lt;b&gt;",
)


class Markup(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.values: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.values += [value or "" for name, value in attrs if name == "style"]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(page: str) -> Markup:
    markup = Markup()
    markup.feed(page)
    return markup


def test_nothing_from_the_log_is_markup() -> None:
    """Hostile agents, principals, workspaces, keys and reasons are shown as the text they are: the
    page has the same tags and attributes as one without them, and loads and runs nothing.
    """
    plain, hostile = Log(), Log()
    for number in range(len(HOSTILE)):
        for log, text in ((plain, "a"), (hostile, HOSTILE[number])):
            name = text.replace(" ", "_")
            values = {"principal": name, "workspace": name[:120], "key_id": name, "agent": text}
            log.call(number, principal="x", workspace=name[:120], key_id=name)
            log.call(60 * 25 + number, **values)
            log.event(60 * 26 + number, "organization.changed", **values)
            log.event(60 * 27 + number, "hsm.probe", success=False, details={"backend": name})
    standing = Standing(HOSTILE[0], "verified", HOSTILE[1], HOSTILE[2])
    pages = (
        page_of(plain.gathered(60), Standing("a", "verified", "a", "a")),
        page_of(hostile.gathered(60), standing),
    )
    harmless, attacked = map(parsed, pages)
    assert attacked.tags <= harmless.tags
    assert attacked.attributes <= harmless.attributes
    assert not attacked.tags & {"script", "img", "link", "iframe", "object", "base", "form", "a"}
    assert not any(name.startswith("on") or name in {"src", "href"} for name in attacked.attributes)
    assert all(re.fullmatch(r"width:[0-9.]+%", value) for value in attacked.values)
    shown = "".join(attacked.text)
    assert all(text.replace(" ", "_") in shown for text in HOSTILE)
    assert "49" not in shown.split("{{_7*7_}}")[1][:3]


def test_the_page_may_load_nothing() -> None:
    """Its own policy forbids scripts and everything from elsewhere, and it names no place."""
    page = page_of(Log().gathered())
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    assert "None of the rules below found anything" in page


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)


TEMPLATE = resources.files("ironwork_audit.report") / "templates" / "page.html.j2"
TAGS = parsed(TEMPLATE.read_text()).tags


@settings(deadline=None, max_examples=40)  # a slow machine is no failure
@given(TEXT, TEXT)
def test_any_text_is_text(agent: str, principal: str) -> None:
    """Whatever may stand in an entry, the page's tags are the template's."""
    log = Log()
    log.call(0)
    log.call(60 * 25, principal=principal.replace(" ", "_"), agent=agent)
    markup = parsed(page_of(log.gathered()))
    assert markup.tags <= TAGS
    assert "".join(markup.text).count("Who used which key") == 1


# --- the command -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log as a busy service leaves it."""
    folder = tmp_path_factory.mktemp("month")
    write_log(folder / "log", [data for _, data in MadeLog(700).entries()], 1_795_435_200)
    return folder


def test_the_command(month: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It verifies, writes one file for its owner alone, and exits with 0."""
    out = month / "page.html"
    arguments = ["report", str(month / "log"), "--key", str(KEY), "--out", str(out)]
    witness = ["--witness-key", str(WITNESS_KEY), "--workers", "1"]
    assert main([*arguments, *witness, "--from", "2026-09-20", "--to", "2026-11-23"]) == 0
    assert "entries in " in capsys.readouterr().out
    assert out.stat().st_mode & 0o777 == 0o600
    page = out.read_text()
    assert "Verified" in page
    assert "Witnessed by witness.test/w at 2026-11-23T12:00:00.000Z" in page
    assert "UNWITNESSED" not in page
    for title in ("A deleted key was there again", "Another Anthropic organisation"):
        assert title in page
    assert sorted(month.iterdir()) == [month / "log", out]


def test_without_a_key(month: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A log that was not verified is reported on, and says so; so does one without a witness."""
    out = month / "unverified.html"
    try:
        assert main(["report", str(month / "log"), "--out", str(out), "--to", "2026-11-23"]) == 0
        page = out.read_text()
    finally:
        out.unlink()
    assert "Not verified" in page
    assert "UNWITNESSED" in page
    assert "24 October 2026" in page
    capsys.readouterr()


def test_a_bad_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page is written and says what is bad; the exit code is 1."""
    log = Log()
    for minute in range(20):
        log.call(minute)
    write_log(tmp_path / "log", log.entries)
    bundle = tmp_path / "log/tile/entries/000.p/40"
    bundle.write_bytes(bundle.read_bytes().replace(b"UTC", b"utc").replace(b"k-1", b"k-7", 1))
    out = tmp_path / "page.html"
    arguments = ["report", str(tmp_path / "log"), "--key", str(KEY), "--out", str(out)]
    assert main([*arguments, "--to", "2026-11-24"]) == 1
    assert "entry 0: its bytes are not those of its hash" in out.read_text()
    assert "BAD  keys.test/a: entry 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "2026-11-24", "--to", "2026-11-23"], "--from: must be before --to"),
        (["--to", "then"], "--to: not a time"),
        (
            ["--key", str(type(KEY)("other.test/b", KEY.type, KEY.public))],
            "no LOG is of the origin",
        ),
        (["--out", "{folder}/nowhere/page.html"], "No such file"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], said: str, month: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, and no page."""
    given = [argument.replace("{folder}", str(month)) for argument in arguments]
    assert main(["report", str(month / "log"), "--workers", "1", *given]) == 2
    assert said in capsys.readouterr().err
    assert not list(month.glob(".page*"))


def test_several_logs_are_read_by_time() -> None:
    """What one process saw before the period is known when another's entries are judged."""
    one, other = Log(), Log()
    one.call(-60)
    other.call(10)
    start_ms, end_ms = NOW_MS, NOW_MS + HOUR_MS
    logs: list[Iterator[tuple[int, bytes]]] = [enumerate(other.entries), enumerate(one.entries)]
    usage, unusual = gather(logs, start_ms, end_ms)
    assert (usage.total.completed, dict(unusual.counts)) == (1, {})
