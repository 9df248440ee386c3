"""The text that every Python installation carries, read as files and never imported.

``stdlib:prose`` is the language reference behind ``help()`` (``pydoc_data``) and the docstrings of modules;
``stdlib:code`` is the source of modules. A module is dealt to one of the two by the hash of its name, so that no docstring is
in both. Each is cut at a fixed number of source bytes, taken in the order of that hash: about 1.5 MB of prose and 2.4 MB of
code, a little over a million tokens at a vocabulary of 4096, whatever the version of Python.
"""

import ast
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import xxhash

PREFIX = "stdlib:"
KINDS = ("stdlib:prose", "stdlib:code")
TOPICS = "pydoc_data/topics.py"
# Of a module's source about a sixth is docstrings.
SOURCE_BYTES = {"stdlib:prose": 6_000_000, "stdlib:code": 2_400_000}

# Tests, generated tables, vendored or optional parts: not the library's own prose or code, or not on every system.
_SKIPPED = {
    *("site-packages", "dist-packages", "lib-dynload", "__pycache__", "__phello__"),
    *("test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "encodings", "pydoc_data", "msilib", "_pyrepl"),
}


def root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def modules(kind: str) -> list[str]:
    """Paths below ``root()`` that ``kind`` reads, in reading order: deterministic for one version of Python."""
    base = root()
    found: list[tuple[int, str, int]] = []
    for folder, folders, files in os.walk(base):
        # Pruned, not filtered: site-packages may hold a hundred times as much.
        folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith("config-")]
        for file in files:
            if file.endswith(".py") and not file.startswith("_sysconfigdata"):
                path = Path(folder, file)
                name = path.relative_to(base).as_posix()
                found.append((xxhash.xxh3_64_intdigest(name.encode()), name, path.stat().st_size))
    chosen = [TOPICS] if kind == "stdlib:prose" and (base / TOPICS).is_file() else []
    left = SOURCE_BYTES[kind]
    for digest, name, size in sorted(found):
        if (digest % 3 == 0) != (kind == "stdlib:code") or size > left:
            continue
        left -= size
        chosen.append(name)
    return chosen


def texts(kind: str, name: str) -> Iterator[tuple[str, str]]:
    """(id, text) of the documents in one module.

    Raises:
        SyntaxError: the module is not Python (``stdlib:prose`` parses it).
        UnicodeDecodeError: it is not UTF-8.
    """
    source = (root() / name).read_bytes().decode("utf-8")
    if kind == "stdlib:code":
        yield name, source
        return
    tree = ast.parse(source)
    if name == TOPICS:
        for statement in tree.body:
            if isinstance(statement, ast.Assign):
                for topic, text in ast.literal_eval(statement.value).items():
                    yield f"{name}:{topic}", text
        return
    yield name, "\n\n".join(_docstrings(tree, name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")))


def _docstrings(node: ast.AST, name: str) -> Iterator[str]:
    """The docstrings of a module, its classes and functions from the top down, each under its qualified name."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield f"{name}\n{text}"
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _docstrings(child, f"{name}.{child.name}")
