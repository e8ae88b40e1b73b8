"""The ``--json`` documents: what each field is. Pure.

docs/reference/exit-codes-and-json.md and the tests are made from it.

A field that comes keeps the version; one that goes or changes its meaning raises it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Objects that recur: name, its fields.
_OBJECTS = {
    "estimate": """
value | number | | the best guess
error | number | | the truth is within value +- error with 95% confidence; 0: exact
""",
    "ages": """
p10 | number or null | s | the youngest tenth of the files is at most so old; null: no files
p50 | number or null | s | half of the files are at most so old
p90 | number or null | s | nine tenths of the files are at most so old
""",
    "measurement": """
operation | text | | store, load, cold-load, lookup or mixed
threads | number | | I/O threads
unit | text | | of engine and plain: GB/s (10^9 bytes) or keys/s
engine | number | | kvshelf's rate, the median of the rounds
plain | number or null | | the rate of plain system calls; null: there is no like
ratio | number or null | | engine to plain, the median of the rounds' ratios
more | map of number | | further figures; the name ends with the unit
""",
}
_SUMMARY = """
files | estimate | files | chunk files; each rank has its own of a chunk
bytes | estimate | bytes | their lengths
stored_seconds_ago | ages | | since chunks were stored that were not used again
used_seconds_ago | ages | | since chunks were last used
"""
_VOLUME = """
free_bytes | number or null | bytes | free on the file system, for anybody; null: not counted
size_bytes | number or null | bytes | of the file system; null: not counted
used_percent | number or null | % | of the file system, as df(1) says; null: not counted
free_inodes | number or null | inodes | free on the file system; null: not counted
used_inode_percent | number or null | % | of its inodes; null: not counted
"""


def _under(path: str, fields: str) -> str:
    return "\n".join(f"{path}{line}" for line in fields.split("\n") if line)


_LS = f"""
root | text | | the directory
exact | boolean | | whether everything was counted
confidence | number | | of the estimates' errors, from 0 to 1
folders | number | folders | that hold chunk files
folders_counted | number | folders | of them that were looked into
unread | number | | folders and files that could not be read
unread_example | text | | the first of them, with the reason; empty: none
total | object | | all namespaces together
{_under("total.", _SUMMARY)}
{_VOLUME}
namespaces | list of object | | in order of their folders
namespaces[].folder | text | | name in the root
namespaces[].model | text or null | | null: its namespace.json is damaged or absent
namespaces[].dtype | text or null | | of the KV cache
namespaces[].digest | text or null | | of the identity, 64 hex digits
{_under("namespaces[].", _SUMMARY)}
namespaces[].temp_bytes | number | bytes | of temp files: being written, or left by a killed writer
namespaces[].ranks | list of object | |
namespaces[].ranks[].rank | number | |
{_under("namespaces[].ranks[].", _SUMMARY)}
"""
_IDENTITIES = """
root | text | | the directory
namespaces | list of object | | in order of their folders
namespaces[].folder | text | | name in the root
namespaces[].model | text or null | | null: its namespace.json is damaged
namespaces[].engine | text or null | | the engine and its minor version
namespaces[].digest | text or null | | of the identity, 64 hex digits
namespaces[].identity | any | | all that decides the bytes, as in namespace.json
namespaces[].problem | text or null | | what is wrong with namespace.json: a finding
"""
_DIFF = """
root | text | | the directory
left | text | | the folder of A
right | text | | the folder of B
differences | list of object | | in order of their fields; empty: they share
differences[].field | text | | of the identity, nested ones with dots
differences[].left | any, optional | | its value in A; absent: A lacks it
differences[].right | any, optional | | its value in B; absent: B lacks it
differences[].meaning | text | | what the field is; empty: not known
differences[].remedy | text | | what makes the two equal; empty: not known
"""
_TOP = f"""
root | text | | the directory
time | number | s | since 1970, by this host's clock
files | estimate | files | chunk files
bytes | estimate | bytes | their lengths
stored_per_second | estimate or null | files/s | since the look before; null: this is the first
evicted_per_second | estimate or null | files/s | since the look before; null: this is the first
stored_seconds_ago | ages | | since chunks were stored that were not used again
used_seconds_ago | ages | | since chunks were last used
{_VOLUME}
unread | number | | folders and files that could not be read
share_of_folders | number | | that are looked into, from 0 to 1
counters | map of number, optional | | kvshelf's series of the server, with --metrics
hit_keys | number, optional | keys | that the server's lookups found
lookup_keys | number, optional | keys | that the server's lookups asked for
metrics_problem | text, optional | | why there are no counters
"""
_EVICT = """
time | text | | ISO 8601, UTC
state | text | | scanning, evicting, idle, stuck, blind or stopped
dry_run | boolean | | whether nothing was removed
removed_files | number | files | chunk files that went, or would go
removed_bytes | number | bytes | their lengths
removed_temp_files | number | files | temp files of dead writers that went, or would go
removed_temp_bytes | number | bytes | their lengths
cut_age_seconds | number or null | s | chunks unused for longer went; null: none were chosen
spared_files | number | files | were to go, and stay because they were used meanwhile
seconds | number | s | that it took
namespaces | map of object | | by folder: files and bytes that are left
volume | object | | the file system
volume.used_bytes | number | bytes | by anybody
volume.total_bytes | number | bytes | used and free
volume.used_inodes | number | inodes | by anybody
volume.total_inodes | number | inodes | used and free
volume.used_percent | number or null | % | null: not counted
volume.used_inode_percent | number or null | % | null: not counted
exceeded | list of object | | limits that are exceeded
exceeded[].limit | text | | its name
exceeded[].namespace | text or null | | whose limit it is; null: the root's
exceeded[].bytes | number | bytes | that are still to go
exceeded[].files | number | files | that are still to go
no_effect | list of object | | limits that removal does not help to keep
no_effect[].limit | text | | its name
no_effect[].bytes | number, optional | bytes | removed, and not shown as free
no_effect[].files | number, optional | files | removed, and not shown as free
room_requests | number | | how often stores failed for lack of room
foreign | object | | what is not kvshelf's
foreign.count | number | entries | files and folders
foreign.examples | list of text | | some of their paths
unread | list of text | | namespaces that may not be read
unseen_folders | number | folders | that could not be looked into
held | object | | files whose removal was refused
held.files | number | files |
held.bytes | number | bytes |
held.errnos | map of number | | how often each errno came
held.examples | list of text | | some of their paths
faults | map of number | | how often each errno came
"""
_SCRUB = """
finding | object, optional | | one thing that is wrong; a document each
finding.kind | text | | see docs/howto/verify.md
finding.path | text | | relative to the root; empty: the root
finding.detail | text | | what is wrong, in words
finding.action | text | | kept, removed or would remove
summary | object, optional | | the last document of a pass
summary.files | number | files | chunk files that were verified
summary.bytes | number | bytes | that were read
summary.sealed | number | files | whose payload only their key can judge
summary.vanished | number | files | evicted or removed by others meanwhile
summary.writing | number | files | temp files of writers that live, or may
summary.finished | boolean | | whether the end of the shelf was reached
summary.findings | map of number | | findings by kind
summary.removed | number | | findings that were removed
summary.seconds | number | s | that the pass took
"""
_BENCH = """
root | text | | the directory
cores | number or null | | processors of this host
size_bytes | number | bytes | moved by a measurement
chunk_bytes | number | bytes | of a chunk file
rounds | number | | of each measurement
direct | text | | whether payloads went by O_DIRECT: on or off
rows | list of measurement | |
"""
_DOCTOR = """
root | text | | the directory
findings | list of object | |
findings[].check | text | | what was looked at
findings[].severity | text | | fine, note, warning or problem
findings[].message | text | | what was found
findings[].remedy | text | | what to do; empty: nothing
rows | list of measurement | | speed; empty with --quick
settings | any | | for --kv-transfer-config; null: kvshelf cannot work here
"""
_PLAN = """
requests | number | | of the trace
prompt_tokens | number | tokens | of all requests
block_tokens | number | tokens | of a chunk
duration_seconds | number | s | in which the requests came
footprint_bytes | number | bytes | of a shelf that keeps all
token_bytes | number | bytes | of KV cache a token, all ranks
worthwhile_load_bytes_per_second | number | bytes/s | a hit loads faster than it computes above this
loads_faster | boolean | | whether it does at the given rates
rows | list of object | | by policy, then by capacity
rows[].policy | text | | order of eviction
rows[].capacity_bytes | number | bytes | of the shelf
rows[].capacity_share | number | | of the footprint, from 0 to 1
rows[].hit_tokens | number | tokens | that the shelf had
rows[].hit_rate | number | | share of all prompt tokens, from 0 to 1
rows[].saved_gpu_seconds | number | s | of GPU time that the hits would have taken to compute
rows[].load_seconds | number | s | that loading them took
rows[].value_a_month | number or null | money | of the saved GPU time; null without prices
rows[].cost_a_month | number or null | money | of the capacity; null without prices
rows[].net_a_month | number or null | money | value less cost; null without prices
break_even | object or null | | under LRU, over every capacity; null without prices
break_even.best_bytes | number | bytes | the capacity that gains most; 0: none pays
break_even.best_net_a_month | number | money | what it gains
break_even.largest_bytes | number | bytes | the largest capacity that pays for itself
rates | object | | of one replica
rates.prefill_tokens_per_second | number | tokens/s |
rates.load_bytes_per_second | number | bytes/s |
rates.gpus | number | GPUs |
replay | list of object | | with --replay
replay[].policy | text | | order of eviction
replay[].requests | number | | that were played
replay[].capacity_blocks | number | chunks | that the shelf had room for
replay[].hits | number | chunks | that were loaded and verified
replay[].simulated_hits | number | chunks | that the simulation has
"""
# Name and version -> the command that prints it, and its fields.
DOCUMENTS = {
    "kvshelf.ls/1": ("kvshelf ls ROOT --json", _LS),
    "kvshelf.identities/1": ("kvshelf ls ROOT --identities --json", _IDENTITIES),
    "kvshelf.diff/1": ("kvshelf diff ROOT A B --json", _DIFF),
    "kvshelf.top/1": ("kvshelf top ROOT --json, one a line and look", _TOP),
    "kvshelf.evict/1": ("kvshelf evict ROOT --json, one a line without --once", _EVICT),
    "kvshelf.scrub/1": ("kvshelf scrub ROOT --json, one a line", _SCRUB),
    "kvshelf.bench/1": ("kvshelf bench ROOT --json", _BENCH),
    "kvshelf.doctor/1": ("kvshelf doctor ROOT --json", _DOCTOR),
    "kvshelf.plan/1": ("kvshelf plan TRACE --json", _PLAN),
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a document.

    Attributes:
        path: ``a.b`` is a member, ``a[].b`` a member of a list's elements.
        type: text, number, boolean, object, any, a name of an object that recurs; "list of" or
            "map of" one of them; with "or null" if it may be null.
        optional: whether it may be absent.
    """

    path: str
    type: str
    unit: str
    meaning: str
    optional: bool


def fields_of(name: str, *, recurring: bool = True) -> list[Field]:
    """The fields of a document; with ``recurring`` also those of the objects that recur."""
    return list(_fields("", DOCUMENTS[name][1], recurring=recurring))


def _fields(path: str, table: str, *, recurring: bool) -> Iterator[Field]:
    for line in filter(None, table.split("\n")):
        name, kind, unit, meaning = (part.strip() for part in line.split("|"))
        kind, _, optional = kind.partition(", ")
        yield Field(f"{path}{name}", kind, unit, meaning, bool(optional))
        is_list = kind.startswith("list of ")
        inner = kind.removeprefix("list of ").removesuffix(" or null")
        if recurring and inner in _OBJECTS:
            place = f"{path}{name}{'[]' * is_list}."
            yield from _fields(place, _OBJECTS[inner], recurring=False)


def document(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """A value with its document's name in front, such as "kvshelf.ls/1"."""
    if name not in DOCUMENTS:
        raise KeyError(name)
    return {"document": name, **value}


def documents_table() -> str:
    """All documents in Markdown, for docs/reference/exit-codes-and-json.md."""
    parts = ["## Objects that recur", ""]
    for name, table in _OBJECTS.items():
        parts += [f"### {name}", "", *_rows(_fields("", table, recurring=False)), ""]
    for name, (command, _) in DOCUMENTS.items():
        rows = _rows(fields_of(name, recurring=False))
        parts += [f"## {name}", "", f"`{command}`", "", *rows, ""]
    return "\n".join(parts)


def _rows(fields: Iterable[Field]) -> list[str]:
    rows = [
        f"| `{each.path}` | {each.type}{', optional' * each.optional} | {each.unit} | "
        f"{each.meaning} |"
        for each in fields
    ]
    return ["| field | type | unit | meaning |", "|---|---|---|---|", *rows]
