"""A stand-in for the Hugging Face Hub: the requests by which its client lists, reads and writes."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@contextmanager
def hub_stand_in(dataset: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """Serve one dataset on this machine; the address is the value of HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            api = f"/api/datasets/{dataset}"
            if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                self._answer(json.dumps({"id": dataset, "sha": COMMIT}).encode())
            elif path.startswith(f"{api}/tree/{COMMIT}"):
                folder = path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
                entries = [_entry(name, data) for name, data in files.items()]
                below = [e for e in entries if str(e["path"]).startswith(folder)]
                self._answer(json.dumps(below).encode())
            else:
                name = path.removeprefix(f"/datasets/{dataset}/resolve/{COMMIT}/")
                self._answer(files.get(name))

        do_HEAD = do_GET

        def _answer(self, body: bytes | None) -> None:
            self.send_response(200 if body is not None else 404)
            if body is None:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(body or b"")))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(body or b"").hexdigest()}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _entry(path: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
    if path.endswith(".parquet"):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
    return entry


class ReceivedModels:
    """What a stand-in for the Hub was sent: files by name, of each model.

    private: whether each was made so.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.messages: list[str] = []


@contextmanager
def receiving_hub(token: str) -> Iterator[tuple[str, ReceivedModels]]:
    """Take models from the Hub's client, with one token; yield the address and what came."""
    received = ReceivedModels()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = unquote(urlsplit(self.path).path)
            if self.headers.get("Authorization") != f"Bearer {token}":
                self._answer(401, {"error": "Invalid username or password."})
            elif path == "/api/repos/create":
                asked = json.loads(body)
                model = f"{asked['organization']}/{asked['name']}"
                status = 409 if model in received.files else 200
                received.files.setdefault(model, {})
                received.private.setdefault(model, asked.get("visibility") == "private")
                self._answer(status, {"url": f"{address}/{model}", "name": model})
            elif path.endswith("/preupload/main"):
                self._answer(200, {"files": [_mode(f["path"]) for f in json.loads(body)["files"]]})
            elif path.endswith("/info/lfs/objects/batch"):
                self._answer(200, {"objects": [_place(o) for o in json.loads(body)["objects"]]})
            elif path.endswith("/commit/main"):
                model = path.removeprefix("/api/models/").removesuffix("/commit/main")
                self._commit(model, [json.loads(line) for line in body.splitlines()])
            else:
                self._answer(200, {})  # such as the check of a card's front matter

        def do_PUT(self) -> None:
            oid = urlsplit(self.path).path.removeprefix("/lfs/")
            received.blobs[oid] = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(200, {})

        def do_GET(self) -> None:
            self._answer(404, {"error": "not here"})

        def _commit(self, model: str, lines: list[dict[str, Any]]) -> None:
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    received.messages.append(value["summary"])
                elif line["key"] == "file":
                    received.files[model][value["path"]] = base64.b64decode(value["content"])
                else:
                    received.files[model][value["path"]] = received.blobs[value["oid"]]
            url = f"{address}/{model}/commit/{COMMIT}"
            self._answer(200, {"commitUrl": url, "commitOid": COMMIT})

        def _answer(self, status: int, content: object) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Keep the test's output clean."""

    def _mode(path: str) -> dict[str, object]:
        mode = "lfs" if path.endswith(".safetensors") else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False}

    def _place(asked: dict[str, Any]) -> dict[str, object]:
        return asked | {"actions": {"upload": {"href": f"{address}/lfs/{asked['oid']}"}}}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield address, received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
