"""The reference of the command line, from its parsers: docs/reference/cli.md. Pure."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from kvshelf.cli.main import COMMANDS, parser
from kvshelf.cli.units import UNITS_HELP


def commands_of(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Name -> the parser of each command, in the order of ``kvshelf --help``."""
    [found] = [a for a in top._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found.choices)


def commands_table() -> str:
    """All commands: usage, description, arguments and options with their defaults."""
    parts = [UNITS_HELP.strip()]
    for name, command in commands_of(parser()).items():
        parts += [f"## kvshelf {name}", _sentence(COMMANDS[name].HELP)]
        parts += [f"```\n{_usage(name, command)}\n```"]
        parts += [_paragraph(text) for text in str(command.description).strip().split("\n\n")]
        parts += [_rows(command)]
    return "\n\n".join(parts) + "\n"


def _paragraph(text: str) -> str:
    """As it is; what the help aligns stays aligned."""
    return f"```\n{text}\n```" if text.startswith("--") and "\n " in text else text


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _usage(name: str, command: argparse.ArgumentParser) -> str:
    operands = [str(action.metavar or action.dest) for action in _operands(command)]
    return " ".join(["kvshelf", name, *operands, "[OPTION ...]"])


def _operands(command: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    return (action for action in command._actions if not action.option_strings)


def _rows(command: argparse.ArgumentParser) -> str:
    lines = ["| argument | meaning |", "|---|---|"]
    for action in command._actions:
        if isinstance(action, argparse._HelpAction) or action.help is argparse.SUPPRESS:
            continue
        lines.append(f"| `{_written(action)}` | {_help(action)} |")
    return "\n".join(lines)


def _written(action: argparse.Action) -> str:
    value = action.metavar or action.dest
    if action.choices:
        value = "|".join(map(str, action.choices)).replace("|", "\\|")
    names = ", ".join(action.option_strings)
    return f"{names} {value}".strip() if action.nargs != 0 else names


def _help(action: argparse.Action) -> str:
    return str(action.help or "") % {**vars(action), "prog": "kvshelf"}
