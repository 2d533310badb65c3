"""A stand-in for Google Cloud Storage: the requests of its JSON API that gcsfs makes.

No emulator that PyPI or Debian has honours `ifGenerationMatch`, the condition that the store rests
on, so this is a stand-in of our own, written from the service's public reference. It says nothing
about credentials, which it takes as they come.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

_PAGE = 1000


@dataclass
class StoredObject:
    """One object of a bucket."""

    data: bytes
    metadata: dict[str, str]
    generation: int
    updated: datetime

    def describe(self, bucket: str, name: str) -> dict[str, Any]:
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(self.data)),
            "generation": str(self.generation),
            "metadata": self.metadata,
            "timeCreated": self.updated.isoformat().replace("+00:00", "Z"),
            "updated": self.updated.isoformat().replace("+00:00", "Z"),
        }


@dataclass
class Upload:
    """A resumable upload that is not complete."""

    bucket: str
    name: str
    metadata: dict[str, str]
    condition: str | None
    data: bytearray = field(default_factory=bytearray)


class GoogleServer:
    """The running stand-in.

    `fail_uploads` counts down: each one is answered 503 after the object was stored, as when the
    answer is lost. `ignores_conditions` makes it a server that overwrites whatever is asked.
    `refusal` is the status and the message of every answer while it is set.
    """

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, StoredObject]] = {}
        self.uploads: dict[str, Upload] = {}
        self.lock = Lock()
        self.fail_uploads = 0
        self.ignores_conditions = False
        self.refusal: tuple[int, str] | None = None
        self._generation = 0
        handler = type("Handler", (_Handler,), {"server_state": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def new_bucket(self) -> str:
        bucket = f"test-{uuid.uuid4().hex[:12]}"
        self.buckets[bucket] = {}
        return bucket

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def put(
        self, bucket: str, name: str, data: bytes, metadata: dict[str, str], condition: str | None
    ) -> StoredObject | None:
        """Store an object; return None when it is there and the condition says that it must not."""
        with self.lock:
            objects = self.buckets[bucket]
            if condition == "0" and name in objects and not self.ignores_conditions:
                return None
            self._generation += 1
            stored = StoredObject(data, metadata, self._generation, datetime.now(UTC))
            objects[name] = stored
            return stored


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: ClassVar[GoogleServer]

    def do_GET(self) -> None:
        path, query = self._parts()
        if self._refuses():
            return
        if match := re.fullmatch(r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)", path):
            self._answer_object(unquote(match[1]), unquote(match[2]), query)
        elif match := re.fullmatch(r"/storage/v1/b/([^/]+)/o", path):
            self._answer_listing(unquote(match[1]), query)
        elif match := re.fullmatch(r"/storage/v1/b/([^/]+)", path):
            known = unquote(match[1]) in self.server_state.buckets
            self._answer(200, {"name": unquote(match[1])}) if known else self._absent()
        else:
            self._absent()

    def do_POST(self) -> None:
        path, query = self._parts()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._refuses():
            return
        if match := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path):
            bucket = unquote(match[1])
            if bucket not in self.server_state.buckets:
                self._absent()
            elif query.get("uploadType") == "multipart":
                self._store_multipart(bucket, body, query)
            else:
                self._begin_resumable(bucket, body, query)
        elif path.startswith("/resumable/"):
            self._continue_resumable(path.rpartition("/")[2], body)
        else:
            self._absent()

    def do_DELETE(self) -> None:
        path, _ = self._parts()
        if self._refuses():
            return
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)", path):
            with self.server_state.lock:
                objects = self.server_state.buckets.get(unquote(match[1]), {})
                found = objects.pop(unquote(match[2]), None) is not None
        else:
            found = self.server_state.uploads.pop(path.rpartition("/")[2], None) is not None
        self._answer(204) if found else self._absent()

    def _parts(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        return parts.path, {name: values[0] for name, values in parse_qs(parts.query).items()}

    def _refuses(self) -> bool:
        if self.server_state.refusal is None:
            return False
        status, message = self.server_state.refusal
        self._answer(status, {"error": {"code": status, "message": message}})
        return True

    def _answer_object(self, bucket: str, name: str, query: dict[str, str]) -> None:
        stored = self.server_state.buckets.get(bucket, {}).get(name)
        if stored is None:
            self._absent()
        elif query.get("alt") != "media":
            self._answer(200, stored.describe(bucket, name))
        elif span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(span[1]), int(span[2] or len(stored.data) - 1)
            self._send(206, stored.data[first : last + 1])
        else:
            self._send(200, stored.data)

    def _answer_listing(self, bucket: str, query: dict[str, str]) -> None:
        if bucket not in self.server_state.buckets:
            self._absent()
            return
        with self.server_state.lock:
            objects = dict(self.server_state.buckets[bucket])
        prefix, after = query.get("prefix", ""), query.get("pageToken", "")
        delimiter = query.get("delimiter")
        offset = query.get("startOffset", "")
        names = [
            name
            for name in sorted(objects)
            if name.startswith(prefix) and name > after and name >= offset
        ]
        folders: set[str] = set()
        if delimiter:
            inner = [name for name in names if delimiter in name[len(prefix) :]]
            below = {name[len(prefix) :].split(delimiter)[0] for name in inner}
            folders = {f"{prefix}{folder}{delimiter}" for folder in below}
            names = [name for name in names if name not in inner]
        page = names[: min(_PAGE, int(query.get("maxResults", _PAGE)))]
        answer: dict[str, Any] = {
            "kind": "storage#objects",
            "items": [objects[name].describe(bucket, name) for name in page],
            "prefixes": sorted(folders),
        }
        if len(page) < len(names):
            answer["nextPageToken"] = page[-1]
        self._answer(200, answer)

    def _store_multipart(self, bucket: str, body: bytes, query: dict[str, str]) -> None:
        described, data = body.removesuffix(b"\n--==0==--").split(b"\n--==0==\n", 1)
        about = json.loads(described.split(b"\n\n", 1)[1])
        data = data.split(b"\n\n", 1)[1]
        upload = Upload(
            bucket, about["name"], about.get("metadata", {}), query.get("ifGenerationMatch")
        )
        self._complete(upload, data)

    def _begin_resumable(self, bucket: str, body: bytes, query: dict[str, str]) -> None:
        about = json.loads(body or b"{}")
        token = uuid.uuid4().hex
        self.server_state.uploads[token] = Upload(
            bucket, query["name"], about.get("metadata", {}), query.get("ifGenerationMatch")
        )
        location = f"{self.server_state.endpoint}/resumable/{token}"
        self._send(200, b"", {"Location": location})

    def _continue_resumable(self, token: str, body: bytes) -> None:
        upload = self.server_state.uploads[token]
        upload.data += body
        total = self.headers["Content-Range"].rpartition("/")[2]
        if total == "*" or len(upload.data) < int(total):  # "*" until the writer knows its size
            self._send(308, b"", {"Range": f"bytes=0-{len(upload.data) - 1}"})
        else:
            self._complete(upload, bytes(upload.data))

    def _complete(self, upload: Upload, data: bytes) -> None:
        state = self.server_state
        stored = state.put(upload.bucket, upload.name, data, upload.metadata, upload.condition)
        if stored is None:
            self._answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        elif state.fail_uploads:
            state.fail_uploads -= 1
            self._answer(503, {"error": {"code": 503, "message": "backendError"}})
        else:
            self._answer(200, stored.describe(upload.bucket, upload.name))

    def _absent(self) -> None:
        self._answer(404, {"error": {"code": 404, "message": "Not Found"}})

    def _answer(self, status: int, body: object = None) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        self._send(status, content, {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def google_server() -> Iterator[GoogleServer]:
    """One stand-in for the whole session."""
    server = GoogleServer()
    yield server
    server.stop()


@pytest.fixture
def gs_url(google_server: GoogleServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The url of an empty place in a fresh bucket; the environment points at the stand-in."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", google_server.endpoint)
    return f"gs://{google_server.new_bucket()}/runs/one"
