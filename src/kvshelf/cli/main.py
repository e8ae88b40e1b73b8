"""The ``kvshelf`` command: arguments, and how a command ends."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from kvshelf.cli import (
    cmd_bench,
    cmd_diff,
    cmd_doctor,
    cmd_evict,
    cmd_ls,
    cmd_plan,
    cmd_scrub,
    cmd_top,
)
from kvshelf.cli.common import EXIT_HELP, CommandError, Exit
from kvshelf.cli.help import Parser, PrintCompletion
from kvshelf.cli.old import renamed
from kvshelf.cli.units import UNITS_HELP
from kvshelf.disk.threads import NO_THREAD
from kvshelf.errors import ConfigError, ResourceError

# What the interpreter says when pools of threads, such as bench's, grow in vain.
_NO_THREAD = "can't start new thread"
# What the dynamic linker says where an extension finds no memory (dlopen(3)).
_NO_ROOM = "failed to map segment from shared object"

# Name -> module with HELP, DESCRIPTION, add_arguments(parser) and run(options).
COMMANDS = {
    "doctor": cmd_doctor,
    "bench": cmd_bench,
    "ls": cmd_ls,
    "diff": cmd_diff,
    "top": cmd_top,
    "evict": cmd_evict,
    "scrub": cmd_scrub,
    "plan": cmd_plan,
}


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands; every command has ``--json`` and says the exit statuses."""
    top = Parser(
        prog="kvshelf",
        description="Look at and look after the KV cache that vLLM keeps on a shared file system.",
        epilog=f"kvshelf help COMMAND: the options of one command.\n\n{EXIT_HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"kvshelf {version('kvshelf')}")
    top.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=("bash", "zsh"),
        help="print the script that makes a shell complete commands and options",
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=f"{UNITS_HELP}\n{EXIT_HELP}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        command.add_argument("--json", action="store_true", help="print JSON, complete")
        command.set_defaults(run=module.run)
    return top


def _drop_output() -> None:
    """The interpreter flushes stdout once more at its end, and would complain then."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _said(error: Exception) -> Exit:
    """Say why a command ends, in one line; the status. Raises what is a fault of this program."""
    text, status = str(error), Exit.NO_RESOURCES
    if isinstance(error, CommandError):
        status = error.status
    elif isinstance(error, ConfigError):
        status = Exit.USAGE
    elif isinstance(error, MemoryError) or _NO_ROOM in text:
        text = "out of memory: raise the limit (ulimit -v, memory.max)"
    elif _NO_THREAD in text:
        text = NO_THREAD
    elif not isinstance(error, ResourceError):
        raise error
    print(f"kvshelf: {text}", file=sys.stderr)
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; arguments are the process's own by default.

    Raises:
        SystemExit: argparse has printed help, the version or what is wrong with the usage.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - until the end
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # In a locale without UTF-8 a model's name is shown with escapes, not a traceback.
            stream.reconfigure(errors="backslashreplace")
    try:
        words, said = renamed(sys.argv[1:] if arguments is None else arguments)
        for line in said:
            print(f"kvshelf: {line}", file=sys.stderr)
        options = parser().parse_args(words)
        status: Exit = options.run(options)
        sys.stdout.flush()
    except (CommandError, ConfigError, MemoryError, RuntimeError, ImportError) as error:
        return _said(error)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return Exit.CLOSED_PIPE
    except OSError as error:  # the shelf's are CommandErrors: it is the output
        print(f"kvshelf: {error}", file=sys.stderr)
        _drop_output()
        return Exit.FINDINGS
    return status
