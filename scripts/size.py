"""Lines of Python in src/kvshelf by room, as wc counts them: the table of docs/dev/size.md.

python scripts/size.py [COMMIT...]    a column each; the working tree without one
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What lay beside the rooms of today, or was a room of its own.
MOVED = {
    "upkeep": "census evict scrub",
    "disk": "auth calls clock deadline documents junk keeper keys layout leftovers mend namespace "
    "owner processes proof rendezvous root this_process threads tree usetime volume",
    "config": "config foreign rootlist values",
    "testing": "format",
}
ROOM_OF = {old: room for room, names in MOVED.items() for old in names.split()}
ROOMS = ("bench", "cli", "config", "disk", "doctor", "engine", "plan", "sglang", "testing")
ROOMS += ("upkeep", "vllm", "weights")
OTHER = "beside the rooms"


def lines_by_room(commit: str) -> Counter[str]:
    where = [commit] if commit else []
    command = ["git", "grep", "--count", "-e", "", *where, "--", "src/kvshelf/*.py"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)  # noqa: S603
    found: Counter[str] = Counter()
    for line in done.stdout.splitlines():
        path, _, count = line.rpartition(":")
        name = path.rpartition("src/kvshelf/")[2].partition("/")[0].removesuffix(".py")
        room = ROOM_OF.get(name, name)
        found[room if room in ROOMS else OTHER] += int(count)
    return found


def table(commits: list[str]) -> str:
    columns = [lines_by_room(commit) for commit in commits]
    rows = [["room", *(commit or "now" for commit in commits)], ["---"] * (len(commits) + 1)]
    rows += [[room, *(f"{column[room]:,}" for column in columns)] for room in (*ROOMS, OTHER)]
    rows.append(["all", *(f"{column.total():,}" for column in columns)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    print(table(sys.argv[1:] or [""]))
