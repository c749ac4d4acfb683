"""Policy files: read within bounds, split into their policies, so that an error has a line.

Cedar's parser recurses: a policy with a thousand nested brackets overflows its stack and takes the
whole process down with SIGSEGV (cedarpy 4.12.2). So nesting is bounded here, before the parser
sees a policy; and since its errors carry no position, each policy is parsed by itself and named
by the line on which it begins.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ironwork_server.access.errors import AccessConfigurationError

SUFFIX = ".cedar"
MAX_FILES = 100
MAX_TOTAL_BYTES = 1024 * 1024
MAX_POLICY_CHARACTERS = 16 * 1024
# Brackets and `if`s inside each other, counted together. Cedar 4.12 survives ten times as many.
MAX_NESTING = 64

# Strings and comments are taken whole, so that brackets and semicolons in them do not count. Both
# end where Cedar's lexer ends them: a comment at CR or LF, and no backslash escapes a line's end.
_TOKEN = re.compile(r'"(?:[^"\\]|\\[^\r\n])*"|//[^\r\n]*|\bif\b|[()\[\]{};]')
_BLANK = re.compile(r"(?:\s|//[^\r\n]*)*")


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """One file's name and text."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class PolicyText:
    """One policy of a file: `where` is `file:line` of its first character."""

    where: str
    text: str


def read_folder(folder: Path) -> tuple[PolicyFile, ...]:
    """The folder's *.cedar files, by name. Raises AccessConfigurationError.

    Hidden files are passed over: editors and Kubernetes' mounts keep copies in them.
    """
    try:
        paths = sorted(
            path
            for path in folder.iterdir()
            if path.name.endswith(SUFFIX) and not path.name.startswith(".") and path.is_file()
        )
    except OSError as error:
        raise AccessConfigurationError(
            f"policy folder {folder}", f"cannot be read ({_cause(error)})"
        ) from None
    if not 1 <= len(paths) <= MAX_FILES:
        raise AccessConfigurationError(
            f"policy folder {folder}",
            f"has {len(paths)} files named *{SUFFIX}; give 1 to {MAX_FILES}",
        )
    files = []
    left = MAX_TOTAL_BYTES
    for path in paths:
        file = _read(path, left)
        left -= len(file.text.encode())
        files.append(file)
    return tuple(files)


def version_of(files: tuple[PolicyFile, ...]) -> str:
    """16 hexadecimal digits of SHA-256 over the names and texts, each with its length."""
    digest = sha256()
    for file in files:
        for part in (file.name.encode(), file.text.encode()):
            digest.update(len(part).to_bytes(8))
            digest.update(part)
    return digest.hexdigest()[:16]


def split(file: PolicyFile) -> Iterator[PolicyText]:
    """The file's policies, each up to its semicolon. Raises AccessConfigurationError."""
    start = 0
    depth = 0
    for token in _TOKEN.finditer(file.text):
        kind = token.group()
        if kind == ";":
            yield _policy(file, start, token.end())
            start, depth = token.end(), 0
        elif kind in {"(", "[", "{", "if"}:
            depth += 1
        elif kind in {")", "]", "}"}:
            depth -= 1
        if depth > MAX_NESTING:
            raise AccessConfigurationError(
                _where(file, token.start()), f"nested deeper than {MAX_NESTING}; write it flatter"
            )
    if _begin(file.text, start) < len(file.text):
        yield _policy(file, start, len(file.text))


def _policy(file: PolicyFile, start: int, end: int) -> PolicyText:
    where = _where(file, _begin(file.text, start))
    if end - start > MAX_POLICY_CHARACTERS:
        raise AccessConfigurationError(
            where, f"one policy is longer than {MAX_POLICY_CHARACTERS} characters; split it"
        )
    return PolicyText(where, file.text[start:end])


def _begin(text: str, position: int) -> int:
    """Where the next thing stands that is neither blank nor comment."""
    blank = _BLANK.match(text, position)
    return position if blank is None else blank.end()


def _where(file: PolicyFile, position: int) -> str:
    return f"{file.name}:{file.text.count(chr(10), 0, position) + 1}"


def _read(path: Path, limit: int) -> PolicyFile:
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise AccessConfigurationError(
            f"policy file {path}", f"cannot be read ({_cause(error)})"
        ) from None
    if len(data) > limit:
        raise AccessConfigurationError(
            f"policy file {path}", f"the folder holds more than {MAX_TOTAL_BYTES} bytes of policies"
        )
    try:
        return PolicyFile(path.name, data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise AccessConfigurationError(f"{path.name}:{line}", "is not UTF-8") from None


def _cause(error: OSError) -> str:
    return error.strerror or type(error).__name__
