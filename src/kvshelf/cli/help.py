"""What hands expect of a command line: suggestions, ``kvshelf help``, completion by shells."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any

# Operands and options whose values are directories or files, for completion.
_DIRECTORIES = {"root", "replay"}
_FILES = {"trace", "config", "auth_key_file", "plot"}


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


class Parser(argparse.ArgumentParser):
    """A parser of commands that suggests what was meant, beside the usage of the command meant."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As of argparse; ``help COMMAND`` is ``COMMAND --help``.

        Raises:
            SystemExit: help or completion was printed, or what is wrong with the usage.
        """
        words = list(sys.argv[1:] if args is None else args)
        if words[:1] == ["help"]:
            words = [*words[1:2], "--help"]
        commands = self._commands()
        if words and words[0] not in commands:
            self._check_first(words[0], list(commands))
        options, extra = self.parse_known_args(words, namespace)
        if extra:
            command = commands[options.command]
            known = list(command._option_string_actions)
            meant = "".join(_did_you_mean(word.partition("=")[0], known) for word in extra[:1])
            command.error(f"unrecognized arguments: {' '.join(extra)}{meant}")
        return options

    def _check_first(self, word: str, commands: list[str]) -> None:
        if not word.startswith("-"):
            meant = _did_you_mean(word, commands) or "."
            self.error(f"no command {word!r}{meant} Commands: {', '.join(commands)}")
        own = list(self._option_string_actions)
        if word.partition("=")[0] not in own:
            self.error(f"no option {word!r} before the command{_did_you_mean(word, own)}")

    def _commands(self) -> dict[str, Parser]:
        found = (a for a in self._actions if isinstance(a, argparse._SubParsersAction))
        return {name: each for action in found for name, each in action.choices.items()}


class PrintCompletion(argparse.Action):
    """Prints the script that makes a shell complete commands and options, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any, **_: Any) -> None:
        try:
            import shtab  # noqa: PLC0415 - an extra
        except ImportError:
            parser.error("completion needs shtab: pip install 'kvshelf[completion]'")
        for command in Parser._commands(parser).values():  # type: ignore[arg-type]
            for action in command._actions:
                if action.dest in _DIRECTORIES:
                    action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
                elif action.dest in _FILES:
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, given[1]))
        parser.exit()
