"""Fails if a source file has 400 lines or more, or a function 70 lines or more.

Python functions are measured by their syntax tree, from ``def`` to the last line, docstring not
counted: a contract may be long. C++ functions are measured by counting braces, which is rough but
sees what clang-format has laid out: a line that ends a parameter list and opens a brace begins one.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70
ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src", "tests", "demo", "scripts", "benchmarks", "examples", "native")
CPP = {".cpp", ".h"}

_NOISE = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|//.*')
_NO_FUNCTION = re.compile(r"^\s*(?:\}\s*)?(?:if|else|for|while|switch|do|try|catch|namespace)\b")
_TYPE = re.compile(r"^\s*(?:class|struct|enum|union|namespace|extern)\b[^()]*\{$")


def python_functions(text: str) -> Iterator[tuple[int, str, int]]:
    """(line, name, lines) of each function, nested ones too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            first = node.body[0]
            if ast.get_docstring(node) is not None:
                length -= (first.end_lineno or first.lineno) - first.lineno + 1
            yield node.lineno, node.name, length


def cpp_functions(text: str) -> Iterator[tuple[int, str, int]]:
    """(line, first line's text, lines) of each outermost function."""
    depth = 0
    start: tuple[int, int, str] | None = None  # line, depth outside it, text
    statement = 1  # line on which the current statement began
    for number, raw in enumerate(text.splitlines(), 1):
        line = _NOISE.sub("", raw).rstrip()
        opens_function = (
            start is None
            and line.endswith("{")
            and not _NO_FUNCTION.match(line)
            and not _TYPE.match(line)
            and (")" in line or "noexcept" in line or "override" in line)
        )
        if opens_function:
            start = (statement, depth, text.splitlines()[statement - 1].strip())
        depth += line.count("{") - line.count("}")
        if start is not None and depth <= start[1]:
            yield start[0], start[2], number - start[0] + 1
            start = None
        if not line or line.endswith((";", "{", "}", ":")) or line.startswith("#"):
            statement = number + 1


def problems(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    if lines >= MAX_FILE_LINES:
        yield f"{path}: {lines} lines (limit {MAX_FILE_LINES - 1})"
    functions = cpp_functions if path.suffix in CPP else python_functions
    for line, name, length in functions(text):
        if length >= MAX_FUNCTION_LINES:
            yield f"{path}:{line}: {name}: {length} lines (limit {MAX_FUNCTION_LINES - 1})"


def main() -> int:
    files = [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in {".py", *CPP}
    ]
    found = [problem for path in files for problem in problems(path)]
    for problem in found:
        print(problem)
    print(f"sizes: {len(files)} files, {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
