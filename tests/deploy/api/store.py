"""Objects in memory: versions, deletion with finalizers, and a log of events for watches."""

from __future__ import annotations

import copy
import threading
import time
import uuid
from typing import Any

from tests.deploy import strict
from tests.deploy.api import controllers

Object = dict[str, Any]


class RefusedError(Exception):
    """What an API server answers with a status of its own."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


class Store:
    """All objects by (kind, namespace, name). Thread-safe: every method takes the lock."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.events: list[tuple[int, str, Object]] = []
        self._items: dict[tuple[str, str, str], Object] = {}
        self._version = 1

    @property
    def version(self) -> str:
        return str(self._version)

    def all(self, kind: str) -> list[Object]:
        with self.changed:
            return [item for key, item in sorted(self._items.items()) if key[0] == kind]

    def everything(self) -> list[Object]:
        with self.changed:
            return list(self._items.values())

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        with self.changed:
            return self._items.get((kind, namespace, name))

    def write(self, item: Object) -> Object:
        """Put an object, as a controller does: no checks."""
        with self.changed:
            key = _key(item)
            old = self._items.get(key)
            item = copy.deepcopy(item)
            meta = item["metadata"]
            self._version += 1
            kept = old["metadata"] if old else {}
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            meta["uid"] = kept.get("uid", str(uuid.uuid4()))
            meta["creationTimestamp"] = kept.get("creationTimestamp", now)
            same = old is not None and old.get("spec") == item.get("spec")
            meta["generation"] = kept.get("generation", 0) + (0 if same else 1)
            meta["resourceVersion"] = self.version
            self._items[key] = item
            self._log("MODIFIED" if old else "ADDED", item)
            return item

    def erase(self, item: Object) -> None:
        """Remove an object for good."""
        with self.changed:
            if self._items.pop(_key(item), None) is not None:
                self._version += 1
                self._log("DELETED", item)

    def put(self, item: Object, *, dry_run: bool) -> Object:
        """Put an object, as a client does.

        Raises:
            RefusedError: the schema or a missing namespace forbids it.
        """
        with self.changed:
            meta = item["metadata"]
            space = meta.get("namespace")
            if space and self.find("Namespace", "", space) is None:
                raise RefusedError(404, "NotFound", f'namespaces "{space}" not found')
            # Not the server's own additions: the schemas are for what people write.
            plain = {key: value for key, value in item.items() if key != "status"}
            found = strict.problems(plain) if strict.knows(plain) else []
            if found:
                raise RefusedError(422, "Invalid", "; ".join(found))
            old = self._items.get(_key(item))
            if old is not None and _content(old) == _content(item):
                return old
            if dry_run:
                return self._preview(old, item)
            made = self.write(item)
            controllers.reconcile(self)
            return self._items.get(_key(made), made)

    def _preview(self, old: Object | None, item: Object) -> Object:
        kept = old["metadata"] if old else {"uid": "", "creationTimestamp": None}
        meta = {k: kept[k] for k in ("uid", "creationTimestamp", "resourceVersion") if k in kept}
        same = old is not None and old.get("spec") == item.get("spec")
        generation = kept.get("generation", 0) + (0 if same else 1)
        return item | {"metadata": item["metadata"] | meta | {"generation": generation}}

    def delete(self, item: Object) -> Object:
        """Delete as a client does: an object with finalizers stays until they are gone."""
        with self.changed:
            if item["kind"] == "Namespace":
                name = item["metadata"]["name"]
                for inner in self.everything():
                    if inner["metadata"].get("namespace") == name and inner["kind"] != "Pod":
                        self.delete(inner)
            if item["metadata"].get("finalizers"):
                now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                gone = item["metadata"] | {"deletionTimestamp": now}
                item = self.write(item | {"metadata": gone})
            else:
                self.erase(item)
            controllers.reconcile(self)
            return item

    def _log(self, event: str, item: Object) -> None:
        self.events.append((self._version, event, copy.deepcopy(item)))
        self.changed.notify_all()


def _key(item: Object) -> tuple[str, str, str]:
    meta = item["metadata"]
    return item["kind"], meta.get("namespace") or "", meta["name"]


def _content(item: Object) -> Object:
    """What a client can change: without what the server adds."""
    own = ("uid", "creationTimestamp", "resourceVersion", "generation", "managedFields")
    meta = {key: value for key, value in item["metadata"].items() if key not in own}
    return {k: v for k, v in item.items() if k != "status"} | {"metadata": meta}
