"""A stand-in for the Hugging Face hub: the addresses that an upload speaks to, with the repositories in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

TOKEN = "hf_ofthestandin"


class Hub(ThreadingHTTPServer):
    """Holds repositories: by name their files, and whether they are private."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}  # by hash, before a commit names them
        self.fails_at = ""
        self.role = "write"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def refused(self, path: str) -> bool:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and not path.startswith("/large/"):
            self.answer({"error": "Invalid credentials in Authorization header"}, 401)
            return True
        if self.server.fails_at and self.server.fails_at in path:
            self.answer({"error": "no room for that here"}, 403)
            return True
        return False

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        if self.refused(path):
            return
        if path == "/api/whoami-v2":
            self.answer(
                {"name": "owner", "type": "user", "auth": {"accessToken": {"role": self.server.role}}}
            )
            return
        name = "/".join(path.split("/")[3:5])
        files = self.server.repositories.get(name)
        if not path.startswith("/api/models/") or files is None:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif "/tree/" in path:
            self.answer(
                [{"type": "file", "path": one, "size": len(own), "oid": "0"} for one, own in files.items()]
            )
        else:
            listed = [{"rfilename": one} for one in files]
            self.answer(
                {"id": name, "sha": "0" * 40, "siblings": listed, "private": name in self.server.private}
            )

    def do_POST(self) -> None:
        path, body = unquote(urlparse(self.path).path), self.body()
        if self.refused(path):
            return
        name = "/".join(path.split("/")[3:5])
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'owner')}/{asked['name']}"
            if name in self.server.repositories:
                self.answer({"url": f"{self.server.address}/{name}"}, 409)
                return
            self.server.repositories[name] = {".gitattributes": b""}
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            self.answer({"url": f"{self.server.address}/{name}"})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [one["path"] for one in json.loads(body)["files"]]
            modes = {one: "lfs" if one.endswith((".safetensors", ".gguf")) else "regular" for one in files}
            self.answer(
                {
                    "files": [
                        {"path": one, "uploadMode": mode, "shouldIgnore": False}
                        for one, mode in modes.items()
                    ]
                }
            )
        elif path.endswith(".git/info/lfs/objects/batch"):
            answers = []
            for one in json.loads(body)["objects"]:
                upload = {"href": f"{self.server.address}/large/{one['oid']}", "header": {}}
                answers.append({"oid": one["oid"], "size": one["size"], "actions": {"upload": upload}})
            self.answer({"transfer": "basic", "objects": answers})
        elif "/commit/" in path:
            files_now = self.server.repositories[name]
            for line in body.splitlines():
                operation = json.loads(line)
                value = operation["value"]
                if operation["key"] == "file":
                    files_now[value["path"]] = base64.b64decode(value["content"])
                elif operation["key"] == "lfsFile":
                    files_now[value["path"]] = self.server.large[value["oid"]]
                elif operation["key"] == "deletedFile":
                    del files_now[value["path"]]
            oid = "1" * 40
            self.answer(
                {"commitUrl": f"{self.server.address}/{name}/commit/{oid}", "commitOid": oid, "success": True}
            )
        else:
            self.answer({"error": f"nothing answers {path}"}, 404)

    def do_PUT(self) -> None:
        content = self.body()
        digest = hashlib.sha256(content).hexdigest()
        assert self.path == f"/large/{digest}"
        self.server.large[digest] = content
        self.answer({})
