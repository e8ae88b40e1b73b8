"""Names that commands and options had once: read for one release, and told on stderr. Pure.

To end that, delete this module and its one caller.
"""

from __future__ import annotations

from collections.abc import Sequence

_VERBS = {"du": ["ls", "--sizes"], "namespaces": ["ls", "--identities"]}
# Command -> its option with two namespaces, which is a command today.
_COMPARE = {"doctor": "--why", "namespaces": "--diff"}
# Command -> its old options -> the option of today, and the unit that the old one's numbers had.
_OPTIONS = {
    "bench": {
        "--size-mb": ("--size", "MB"),
        "--chunk-mb": ("--chunk-size", "MB"),
        "--piece-mib": ("--piece-size", "MiB"),
    },
    "doctor": {"--size-mb": ("--size", "MB"), "--wait-seconds": ("--wait", "s")},
    "evict": {
        "--rate": ("--max-files-per-second", ""),
        "--interval": ("--every", "s"),
        "--lease-seconds": ("--lease", "s"),
        "--settle-seconds": ("--settle", "s"),
    },
    "ls": {"--seconds": ("--for", "s")},
    "plan": {
        "--capacity-gb": ("--capacity", "GB"),
        "--load-gbps": ("--load-bytes-per-second", "GB"),
        "--duration-seconds": ("--duration", "s"),
        "--touch-interval-seconds": ("--touch-interval", "s"),
    },
    "scrub": {
        "--megabytes-per-second": ("--max-bytes-per-second", "MB"),
        "--files-per-second": ("--max-files-per-second", ""),
        "--temp-hours": ("--temp-age", "h"),
        "--unused-days": ("--unused-for", "d"),
        "--minutes": ("--for", "m"),
        "--every-hours": ("--every", "h"),
    },
    "top": {"--seconds": ("--every", "s")},
}


def renamed(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments in today's words, and a line for each old word."""
    if not arguments:
        return [], []
    said: list[str] = []
    command, *rest = _verb(arguments, said)
    return [command, *_options(_OPTIONS.get(command, {}), rest, said)], said


def _verb(arguments: Sequence[str], said: list[str]) -> list[str]:
    command, *rest = arguments
    option = _COMPARE.get(command)
    if option is not None and option in rest:
        at = rest.index(option)
        said.append(f"{command} {option} is an old name: write kvshelf diff ROOT A B")
        return ["diff", *rest[:at], *rest[at + 3 :], *rest[at + 1 : at + 3]]
    if command not in _VERBS:
        return [command, *rest]
    said.append(f"{command} is an old name: write kvshelf {' '.join(_VERBS[command])}")
    return [*_VERBS[command], *rest]


def _options(
    names: dict[str, tuple[str, str]], arguments: Sequence[str], said: list[str]
) -> list[str]:
    result: list[str] = []
    left = list(arguments)
    while left:
        word = left.pop(0)
        if word == "--":
            return [*result, word, *left]
        old, equals, value = word.partition("=")
        if old in names and (equals or left):
            new, unit = names[old]
            value = value if equals else left.pop(0)
            # A list has its unit in each part.
            word = f"{new}={','.join(f'{part.strip()}{unit}' for part in value.split(','))}"
            said.append(f"{old} is an old name: write {word}")
        result.append(word)
    return result
