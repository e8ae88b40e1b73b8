"""JSON merge patch (RFC 7396), and strategic merge patch as far as Deployments need it."""

from __future__ import annotations

import copy
from typing import Any

# By which field the entries of a list are told apart, by the list's name.
MERGE_KEYS = {
    "containers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "ports": ("containerPort", "port"),
    "subjects": (),
}


def merge(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    made = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = merge(made.get(key), value)
    return made


def strategic(target: Any, patch: Any) -> Any:
    """Like ``merge``, but lists of MERGE_KEYS are merged by entry, and $-directives obeyed."""
    if not isinstance(patch, dict) or not isinstance(target, dict):
        return copy.deepcopy(patch)
    made = dict(target)
    retained = patch.get("$retainKeys")
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            made.pop(key, None)
        elif isinstance(value, list) and isinstance(made.get(key), list) and MERGE_KEYS.get(key):
            order = patch.get(f"$setElementOrder/{key}")
            made[key] = _entries(made[key], value, MERGE_KEYS[key], order)
        elif key in made:
            made[key] = strategic(made[key], value)
        else:
            made[key] = copy.deepcopy(value)
    if retained is not None:
        made = {key: value for key, value in made.items() if key in retained}
    return made


def _entries(
    target: list[Any], patch: list[Any], names: tuple[str, ...], order: list[Any] | None
) -> list[Any]:
    def identity(entry: dict[str, Any]) -> Any:
        return next((entry[name] for name in names if name in entry), None)

    made = {identity(entry): entry for entry in target}
    for entry in patch:
        if entry.get("$patch") == "delete":
            made.pop(identity(entry), None)
        else:
            made[identity(entry)] = strategic(made.get(identity(entry), {}), entry)
    if order is not None:
        place = {identity(entry): number for number, entry in enumerate(order)}
        return sorted(made.values(), key=lambda entry: place.get(identity(entry), len(place)))
    return list(made.values())
