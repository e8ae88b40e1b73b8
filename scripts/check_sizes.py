"""Fails if a source file has 400 lines or more, a function 70, or a C++ class more than 20 methods
or 15 fields.

Python functions are measured by their syntax tree, from ``def`` to the last line, docstring not
counted: a contract may be long. C++ functions are measured by counting braces, which is rough but
sees what clang-format has laid out: a line that ends a parameter list and opens a brace begins one.
Constructors, destructors and operators are no methods; a struct is a record, and not counted.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70
MAX_CLASS_METHODS = 20
MAX_CLASS_FIELDS = 15
ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src", "tests", "demo", "scripts", "benchmarks", "examples", "native")
CPP = {".cpp", ".h"}

_NOISE = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|//.*')
_NO_FUNCTION = re.compile(r"^\s*(?:\}\s*)?(?:if|else|for|while|switch|do|try|catch|namespace)\b")
_TYPE = re.compile(r"^\s*(?:class|struct|enum|union|namespace|extern)\b[^()]*\{$")

_CLASS = re.compile(r"^(\s*)class (?:\w+\(.*\) |[A-Z_]+ )?([\w:]+)[^;]*\{$")
_ANNOTATION = re.compile(r"\b(?:KVSHELF_\w+\([^()]*\)|(?:ENGINE|SWEEP)_\w+)")
_TEMPLATE = re.compile(r"<[^<>]*>")
_NO_MEMBER = re.compile(r"(?:using|friend|struct|class|enum|static constexpr)\b")
_NO_METHOD = re.compile(r"~|\boperator\b|= (?:delete|default)")


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


def cpp_members(lines: list[str]) -> Iterator[str]:
    """The declarations in a class, of which `lines` are what follows its opening brace."""
    depth = 0
    statement = ""
    for line in lines:
        if depth == 0:
            if line.lstrip().startswith("}"):
                return
            if not line.endswith(":"):
                statement += f" {line.strip()}"
        before = depth
        depth += line.count("{") - line.count("}")
        if depth == 0 and (before > 0 or statement.endswith((";", "}"))):
            yield statement.strip()
            statement = ""


def cpp_classes(text: str) -> Iterator[tuple[int, str, int, int]]:
    """(line, name, methods, fields) of each class."""
    lines = [_NOISE.sub("", raw).rstrip() for raw in text.splitlines()]
    for number, line in enumerate(lines, 1):
        begins = _CLASS.match(line)
        if begins is None:
            continue
        name = begins[2].split("::")[-1]
        methods = fields = 0
        for member in cpp_members(lines[number:]):
            plain = _ANNOTATION.sub("", member)
            while _TEMPLATE.search(plain):
                plain = _TEMPLATE.sub("", plain)
            plain = plain.removeprefix("template ").strip()
            if _NO_MEMBER.match(plain) or not plain.strip(";"):
                continue
            if "(" not in re.split(r"[={]", plain)[0]:
                fields += 1
            elif not _NO_METHOD.search(plain) and not re.match(rf"(?:explicit )?{name}\(", plain):
                methods += 1
        yield number, name, methods, fields


def problems(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    if lines >= MAX_FILE_LINES:
        yield f"{path}: {lines} lines (limit {MAX_FILE_LINES - 1})"
    functions = cpp_functions if path.suffix in CPP else python_functions
    for line, name, length in functions(text):
        if length >= MAX_FUNCTION_LINES:
            yield f"{path}:{line}: {name}: {length} lines (limit {MAX_FUNCTION_LINES - 1})"
    for line, name, methods, fields in cpp_classes(text) if path.suffix in CPP else ():
        if methods <= MAX_CLASS_METHODS and fields <= MAX_CLASS_FIELDS:
            continue
        yield (
            f"{path}:{line}: {name}: {methods} methods, {fields} fields"
            f" (limits {MAX_CLASS_METHODS}, {MAX_CLASS_FIELDS})"
        )


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
