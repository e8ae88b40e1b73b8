"""Strict schemas: Kubernetes' own kinds, and custom resources with their schemas' rules (CEL).

What an API server would refuse is refused here: unknown fields, wrong types, missing fields, values
out of range, broken rules. Rules that compare with an old object are left out.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.tools import module

Schema = dict[str, Any]
KUBERNETES = "1.37"
OURS = Path(__file__).with_name("schemas")
# Folders of CustomResourceDefinitions: our own short ones, and the full ones where there are any.
FOLDERS = [OURS, *map(Path, filter(None, [os.environ.get("KVSHELF_CRDS")]))]


@cache
def definitions() -> dict[tuple[str, str], Schema]:
    """Custom resources by (apiVersion, kind). The full ones replace ours."""
    found: dict[tuple[str, str], Schema] = {}
    for folder in FOLDERS:
        for path in sorted(folder.glob("*.yaml")):
            for crd in yaml.safe_load_all(path.read_text()):
                spec = crd["spec"]
                for version in spec["versions"]:
                    key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                    found[key] = crd | {"schema": version["schema"]["openAPIV3Schema"]}
    return found


def knows(item: dict[str, Any]) -> bool:
    """Whether there is a schema for it."""
    group = item["apiVersion"].rpartition("/")[0]
    own = "." not in group or group in ("rbac.authorization.k8s.io", "networking.k8s.io")
    return own or _key(item) in definitions()


def _key(item: dict[str, Any]) -> tuple[str, str]:
    return item["apiVersion"], item["kind"]


def problems(item: dict[str, Any]) -> list[str]:
    """What an API server would say against it, sorted; nothing if it would take it."""
    name = f"{item['kind']}/{item['metadata'].get('name')}"
    if definition := definitions().get(_key(item)):
        found = list(_custom(item, definition["schema"]))
    else:
        found = list(_own(item))
    return sorted(f"{name}: {problem}" for problem in found)


def _own(item: dict[str, Any]) -> Iterator[str]:
    validate = module("kubernetes_validate")
    try:
        validate.validate(item, KUBERNETES, strict=True)
    except validate.ValidationError as error:
        yield f"{'.'.join(str(part) for part in error.path)}: {error.message}"
    except validate.SchemaNotFoundError as error:
        yield f"no schema: {error}"


def _custom(item: dict[str, Any], schema: Schema) -> Iterator[str]:
    jsonschema = module("jsonschema")
    for error in jsonschema.Draft202012Validator(_strict(schema)).iter_errors(item):
        yield f"{error.json_path}: {error.message}"
    filled = _defaults(copy.deepcopy(item), schema)
    yield from _rules(filled, schema, "$")


def _strict(schema: Schema) -> Schema:
    """As a JSON schema that refuses unknown fields, as an API server does if it is strict."""
    made = {key: value for key, value in schema.items() if not key.startswith("x-")}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in schema:
        made["properties"] = {name: _strict(inner) for name, inner in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            made[key] = _strict(schema[key])
    return made


def _defaults(value: Any, schema: Schema) -> Any:
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name not in value and "default" in inner:
                value[name] = copy.deepcopy(inner["default"])
            if name in value:
                value[name] = _defaults(value[name], inner)
    elif isinstance(value, list):
        value = [_defaults(entry, schema.get("items", {})) for entry in value]
    return value


def _rules(value: Any, schema: Schema, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], value):
            yield f"{path}: {rule.get('message', rule['rule'])}"
    if isinstance(value, dict):
        others = schema.get("additionalProperties")
        for name, entry in value.items():
            inner = schema.get("properties", {}).get(name, others)
            if isinstance(inner, dict):
                yield from _rules(entry, inner, f"{path}.{name}")
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _rules(entry, schema.get("items", {}), f"{path}[{number}]")


@cache
def _program(rule: str) -> Any:
    celpy = module("celpy")
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def _holds(rule: str, value: Any) -> bool:
    celpy = module("celpy")
    return bool(_program(rule).evaluate({"self": celpy.json_to_cel(value)}))
