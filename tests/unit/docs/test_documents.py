"""The documents are held against the code: what can be counted or named in them is true."""

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ironwork_server.app.metrics import PrometheusMeter
from ironwork_server.app.settings import Settings

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
SERVER = ROOT / "server" / "ironwork_server"
LINK = re.compile(r"\]\(([^)\s]+)\)")
REASON = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*")
EVENT = re.compile(r"[a-z]+\.[a-z_]+")

# Where callers' and operators' reasons are made; other constants of that form are none.
REASON_FOLDERS = ("access", "core", "custody", "journal", "rpc", "store", "upstream")
# Passed to the functions that make these errors, by position.
REASON_MAKERS = {"_refused", "_before", "_refusal", "_Limit"}


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link of a page names a file that is there, and a heading that it has."""
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        if target.startswith(("http:", "https:")):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), target


def test_every_page_is_in_the_index() -> None:
    """Each page of docs/ stands in its README, and each decision in that of adr/."""
    for folder in (DOCS, DOCS / "adr"):
        index = (folder / "README.md").read_text(encoding="utf-8")
        for path in folder.glob("*.md"):
            assert path.name == "README.md" or f"({path.name})" in index, path.name


def test_the_readme_is_one_screen() -> None:
    """The README has at most 60 lines and shows the agent's lines as the demo has them."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 60
    demo = ast.parse((ROOT / "demo" / "steps.py").read_text(encoding="utf-8"))
    (sdk,) = (
        node.value.value
        for node in demo.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and getattr(node.targets[0], "id", "") == "SDK"
    )
    assert sdk in readme


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting by its full name."""
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, info


def shown(value: Any) -> str:
    """A default as the table shows it."""
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value) or "none"
    if isinstance(value, bool):
        return f"`{value}`".lower()
    return f"{value:g}" if isinstance(value, int | float) else f"`{value}`"


def test_the_settings_reference_is_the_settings() -> None:
    """The table has a row for each setting, and no other, with the default that is in force."""
    section = page("operations.md").split("\n## Settings\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([a-z_.]+)` \| ([^|]+?) \|", section, re.MULTILINE)
    expected = {
        name: "required" if info.is_required() else shown(info.default)
        for name, info in fields(Settings)
    }
    assert dict(rows) == expected
    assert len(rows) == len(expected)


def literals(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def reasons() -> set[str]:
    """Every reason that the server's code names."""
    found = set()
    for folder in REASON_FOLDERS:
        for path in (SERVER / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    named = [word.value for word in node.keywords if word.arg == "reason"]
                    if getattr(node.func, "id", "") in REASON_MAKERS:
                        named += node.args
                    found.update(text for value in named for text in literals(value))
                elif isinstance(node, ast.Assign) and "REASON" in ast.unparse(node.targets[0]):
                    found.update(literals(node.value))
    return {text for text in found if REASON.fullmatch(text)}


def test_every_reason_is_explained() -> None:
    """What an error's reason can be stands in the API's tables, or in the operators'."""
    told = set(REASON.findall(page("api.md") + page("operations.md") + page("master-key.md")))
    found = reasons()
    assert {"NO_KEY", "UPSTREAM_DNS", "LIMIT_KEYS", "SPIFFE_ID_MISSING"} <= found
    assert found <= told, found - told


def test_every_metric_is_explained() -> None:
    """The table of metrics has the names and labels of the registry, and no others."""
    meter = PrometheusMeter()
    # Those that are asked at each scrape are named where the service is put together.
    for node in ast.walk(ast.parse((SERVER / "app" / "service.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "watch":
            name, _, label = list(literals(node))[:3]
            meter.watch(name, "", label, dict)
    ours = {
        (f"{name}_total" if kind == "counter" else f"{name}_info" if kind == "info" else name): set(
            metric._labelnames
        )
        for metric in meter.registry._collector_to_names
        if isinstance(metric, MetricWrapperBase)
        for name, kind in [(metric._name, metric._type)]
    }
    ours["ironwork_build_info"] = {"version", "python", "grpc"}
    section = page("operations.md").split("\n## Metrics\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(ironwork_\w+)` \| ([^|]*)\|", section, re.MULTILINE)
    assert {name: set(re.findall(r"\w+", labels)) for name, labels in rows} == ours


def log_events() -> set[str]:
    """The constant events of our own log records."""
    found = set()
    for path in SERVER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and ast.unparse(node.func.value) in {"log", "_log"}
                and node.args
            ):
                found.update(literals(node.args[0]))
    return found


def test_every_log_event_is_explained() -> None:
    """The table of log events has those that the code logs, and no other."""
    section = page("operations.md").split("\n## Logs\n")[1].split("\n## ")[0]
    told = {
        event
        for line in section.splitlines()
        if line.startswith("| `")
        for event in EVENT.findall(line.split("|")[1])
    }
    assert told == log_events()


def direct_dependencies() -> set[str]:
    """What the distributions and requirements/*.in name, but for our own."""
    names = set()
    folders = (*ROOT.glob("*"), *ROOT.glob("clients/*"), *ROOT.glob("tests/*"))
    for path in (folder / "pyproject.toml" for folder in folders):
        if not path.is_file():
            continue
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        extras = project.get("optional-dependencies", {}).values()
        for lines in (project["dependencies"], *extras):
            names.update(Requirement(line).name for line in lines)
    for path in (ROOT / "requirements").glob("*.in"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip() and not line.startswith(("#", "-e")):
                names.add(Requirement(line).name)
    return {name for name in names if not name.startswith("ironwork-")}


def test_every_dependency_is_accounted_for() -> None:
    """Each direct dependency has its line, with the version that is locked."""
    rows = {
        name: row
        for row in re.findall(r"^\|.+\|$", page("dependencies.md"), re.MULTILINE)
        for name in row.split("|")[1].strip().split(", ")
    }
    names = direct_dependencies()
    assert names <= rows.keys(), names - rows.keys()
    # The generator, the SDKs built on httpx, what is measured and what verifies logs live in
    # environments of their own.
    elsewhere = {"grpcio-tools", "setuptools", "litellm", "aiohttp", "httptools", "pyreqwest"}
    elsewhere |= {"aics-witness", "aics-tlog", "tlog-scales"}
    for name in names - elsewhere:
        assert version(name) in rows[name], name
