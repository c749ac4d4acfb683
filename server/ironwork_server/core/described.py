"""An error as a log may show it: its type and where it came from, never its text, which may quote
a header, a body or a key.
"""

import traceback

MAX_FRAMES = 20


def described(error: BaseException) -> dict[str, object]:
    """`error`: the type's full name. `at`: the last frames, `folder/file:line function`."""
    kind = type(error)
    frames = traceback.extract_tb(error.__traceback__, limit=-MAX_FRAMES)
    return {
        "error": f"{kind.__module__}.{kind.__qualname__}",
        "at": [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames],
    }


def _short(filename: str) -> str:
    return "/".join(filename.rsplit("/", 2)[-2:])
