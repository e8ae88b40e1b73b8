"""The HTTP side of the test server: discovery, objects, tables, watches, and the proxy to pods."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.deploy.api import kinds, patches, protobuf
from tests.deploy.api.store import RefusedError, Store

Object = dict[str, Any]
_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>v\d\w*)"
    r"(?:/namespaces/(?P<space>[^/]+)(?=/\w))?/(?P<plural>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+)(?P<rest>/.*)?)?$"
)


class Server:
    """The test server on a free port of 127.0.0.1.

    Attributes:
        store: its objects.
        backends: base addresses of processes that stand for pods: the n-th pod of the model server,
            in order of its name, is the n-th of them.

    Args:
        without: groups of custom resources that the cluster does not have.
    """

    def __init__(self, without: Collection[str] = ()) -> None:
        self.groups = kinds.groups(without)
        self.store = Store()
        self.backends: list[str] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig that leads here."""
        here = f"http://127.0.0.1:{self._http.server_port}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": here}}],
            "users": [{"name": "test", "user": {"token": "none"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def backend(self, pod: str) -> str:
        """The address that stands for a pod.

        Raises:
            RefusedError: there is none.
        """
        names = [
            item["metadata"]["name"]
            for item in self.store.all("Pod")
            if item["metadata"]["name"].startswith("llm-d-model-server")
        ]
        if pod not in names or names.index(pod) >= len(self.backends):
            raise RefusedError(503, "ServiceUnavailable", f"nothing runs as {pod}")
        return self.backends[names.index(pod)]


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"server_side": server})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_side: Server

    def log_message(self, *_: object) -> None:
        """Quiet: what matters is in the answers."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        body = self._body()
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        try:
            if (
                method == "GET"
                and (found := discovery(url.path, self.server_side.groups)) is not None
            ):
                self._send(200, found)
                return
            match = _PATH.match(url.path)
            resource = _resource(match.groupdict(), self.server_side.groups) if match else None
            if match is None or resource is None:
                raise RefusedError(404, "NotFound", f"no path {url.path}")
            if match["sub"] == "proxy":
                self._proxy(method, match, body)
            elif method == "GET" and query.get("watch") in ("1", "true"):
                self._watch(resource, match, query)
            else:
                self._send(*self._operate(method, resource, match, query, body))
        except RefusedError as error:
            self._send(error.code, _failure(error))

    def _body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""  # what "kubectl create --raw -f" sends: its length is not known before
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, code: int, answer: Object | bytes, kind: str = "application/json") -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _operate(
        self,
        method: str,
        resource: kinds.Resource,
        match: re.Match[str],
        query: dict[str, str],
        body: bytes,
    ) -> tuple[int, Object]:
        store = self.server_side.store
        space, name = match["space"] or "", match["name"]
        with store.changed:
            old = store.find(resource.kind, space, name) if name else None
            if method == "GET" and name is None:
                return 200, self._shown(resource, list(_chosen(store, resource, space, query)))
            if method == "POST":
                item = _read(body)
                named = item["metadata"]["name"]
                if store.find(resource.kind, space, named) is not None:
                    message = f'{resource.plural} "{named}" already exists'
                    raise RefusedError(409, "AlreadyExists", message)
                return 201, self._put(item, resource, space, query)
            if method == "PATCH":
                return 200, self._put(self._patched(old, body, name), resource, space, query)
            if old is None:
                raise RefusedError(404, "NotFound", f'{resource.plural} "{name}" not found')
            if method == "GET":
                return 200, self._shown(resource, [old], one=True)
            if method == "PUT":
                return 200, self._put(_read(body), resource, space, query)
            dry_run = query.get("dryRun") == "All"
            return 200, old if dry_run else store.delete(old)

    def _put(
        self, item: Object, resource: kinds.Resource, space: str, query: dict[str, str]
    ) -> Object:
        if resource.namespaced:
            named = item["metadata"].setdefault("namespace", space)
            if named != space:
                raise RefusedError(400, "BadRequest", f"namespace {named} in a path of {space}")
        return self.server_side.store.put(item, dry_run=query.get("dryRun") == "All")

    def _patched(self, old: Object | None, body: bytes, name: str) -> Object:
        kind = self.headers["Content-Type"].partition(";")[0]
        patch = yaml.safe_load(body)
        if kind == "application/apply-patch+yaml":  # one field manager: what it says is all
            kept = {k: v for k, v in (old or {}).items() if k == "status"}
            return kept | patch
        if old is None:
            raise RefusedError(404, "NotFound", f'"{name}" not found')
        if kind == "application/strategic-merge-patch+json":
            made = patches.strategic(old, patch)
        else:
            made = patches.merge(old, patch)
        assert isinstance(made, dict)
        return made

    def _shown(self, resource: kinds.Resource, items: list[Object], *, one: bool = False) -> Object:
        version = self.server_side.store.version
        if "as=Table" in (self.headers.get("Accept") or ""):
            return kinds.table(resource, items, version)
        if one:
            return items[0]
        return {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.api_version,
            "metadata": {"resourceVersion": version},
            "items": items,
        }

    def _watch(self, resource: kinds.Resource, match: re.Match[str], query: dict[str, str]) -> None:
        store = self.server_side.store
        if query.get("sendInitialEvents") == "true":  # the client then lists before it watches
            raise RefusedError(422, "Invalid", "sendInitialEvents: not here")
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        seen = int(query.get("resourceVersion") or 0)
        with contextlib.suppress(OSError):
            for _ in range(int(query.get("timeoutSeconds", "60"))):
                with store.changed:
                    if not any(version > seen for version, _, _ in store.events):
                        store.changed.wait(1)
                    fresh = [event for event in store.events if event[0] > seen]
                for version, event, item in fresh:
                    seen = version
                    if item["kind"] == resource.kind and _matches(item, match["space"], query):
                        shown = item
                        if "as=Table" in (self.headers.get("Accept") or ""):
                            shown = kinds.table(resource, [item], str(version))
                        line = json.dumps({"type": event, "object": shown})
                        self.wfile.write(line.encode() + b"\n")
                        self.wfile.flush()

    def _proxy(self, method: str, match: re.Match[str], body: bytes) -> None:
        pod = match["name"].partition(":")[0]
        address = self.server_side.backend(pod) + (match["rest"] or "/")
        kind = {"Content-Type": "application/json"} if method == "POST" else {}
        request = urllib.request.Request(address, body or None, kind, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                self._send(200, reply.read(), reply.headers["Content-Type"])
        except urllib.error.HTTPError as error:
            self._send(error.code, error.read(), error.headers["Content-Type"])


def _read(body: bytes) -> Object:
    if body.startswith(protobuf.MAGIC):
        return protobuf.decode(body)
    item: Object = json.loads(body)
    return item


def _failure(error: RefusedError) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": str(error),
        "reason": error.reason,
        "code": error.code,
    }


Groups = dict[str, list[kinds.Resource]]


def _resource(path: dict[str, str], groups: Groups) -> kinds.Resource | None:
    for resource in (one for resources in groups.values() for one in resources):
        if (resource.group, resource.version, resource.plural) == (
            path["group"] or "",
            path["version"],
            path["plural"],
        ):
            return resource
    return None


def _chosen(
    store: Store, resource: kinds.Resource, space: str, query: dict[str, str]
) -> Iterator[Object]:
    return (item for item in store.all(resource.kind) if _matches(item, space, query))


def _matches(item: Object, space: str | None, query: dict[str, str]) -> bool:
    meta = item["metadata"]
    if space and meta.get("namespace") != space:
        return False
    labels = meta.get("labels", {})
    for term in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = term.partition("=")
        if labels.get(key) != value.removeprefix("="):
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        key, _, value = term.partition("=")
        if meta.get(key.removeprefix("metadata.")) != value:
            return False
    return True


def discovery(path: str, groups: Groups) -> Object | None:
    """What clients ask before anything else; None for other paths."""
    if path == "/version":
        return {"major": "1", "minor": "37", "gitVersion": "v1.37.0", "platform": "test"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        versions = [
            {"groupVersion": gv, "version": gv.partition("/")[2]} for gv in groups if "/" in gv
        ]
        names = [v | {"name": v["groupVersion"].partition("/")[0]} for v in versions]
        return {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [
                {
                    "name": v["name"],
                    "versions": [{k: v[k] for k in ("groupVersion", "version")}],
                    "preferredVersion": {k: v[k] for k in ("groupVersion", "version")},
                }
                for v in names
            ],
        }
    name = path.removeprefix("/apis/").removeprefix("/api/")
    if name in groups and path.startswith(("/api/", "/apis/")):
        return {
            "kind": "APIResourceList",
            "groupVersion": name,
            "resources": [_described(resource) for resource in groups[name]],
        }
    return _openapi(path, groups)


def _described(resource: kinds.Resource) -> Object:
    return {
        "name": resource.plural,
        "singularName": resource.kind.lower(),
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": kinds.VERBS,
        "shortNames": list(resource.short),
    }


def _openapi(path: str, groups: dict[str, list[kinds.Resource]]) -> Object | None:
    """Just enough to say that the server itself validates fields."""
    places = {(f"apis/{gv}" if "/" in gv else f"api/{gv}"): gv for gv in groups}
    if path == "/openapi/v3":
        return {"paths": {p: {"serverRelativeURL": f"/openapi/v3/{p}"} for p in places}}
    group_version = places.get(path.removeprefix("/openapi/v3/"))
    if group_version is None:
        return None
    group, _, version = group_version.rpartition("/")
    paths = {}
    for resource in groups[group_version]:
        kind = {"group": group, "version": version, "kind": resource.kind}
        parameters = [{"name": "fieldValidation", "in": "query"}]
        paths[f"/{resource.plural}/{{name}}"] = {
            "patch": {"x-kubernetes-group-version-kind": kind, "parameters": parameters}
        }
    info = {"title": "test", "version": "v1"}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}}
