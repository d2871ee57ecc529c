"""A Hub on this machine: the endpoints that huggingface_hub uses to up- and download.

It checks what the Hub checks (token, card, hashes of large files) and fails on demand.
"""

import base64
import hashlib
import http.server
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import yaml

TOKEN = "hf_aVerySecretTokenThatNobodyMaySee"
COMMIT = "c" * 40
# What .gitattributes of a new repository makes a large file.
_LARGE = (".bin", ".safetensors", ".pt")
# From the Hub's list of licences.
_LICENSES = {"mit", "apache-2.0", "creativeml-openrail-m", "other"}


@dataclass
class Fault:
    """What happens to the next `times` requests to a path that `pattern` matches."""

    pattern: str
    # A status; the body of an answer that looks sound; "drop": the connection is closed
    # without an answer; "half": in the middle of one; "wait": nothing comes in time.
    answer: int | str | bytes
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Hub:
    """State of the server, for tests to read and to prepare."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    server: http.server.ThreadingHTTPServer | None = None

    def stop(self) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None


def check_card(content: str) -> list[str]:
    """What is wrong with a README.md's front matter, in the Hub's manner."""
    found = re.match(r"---\n(.*?)\n---\n", content, re.S)
    if not found:
        return ["no front matter"]
    data = yaml.safe_load(found[1])
    wrong = []
    if "license" in data and data["license"] not in _LICENSES:
        wrong.append(f'"license" must be one of {sorted(_LICENSES)}')
    tags = data.get("tags")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        wrong.append('"tags" must be an array of strings')
    base = data.get("base_model", "a/b")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        wrong.append('"base_model" must be a repository id')
    return wrong


def start() -> Hub:
    """Starts the server on a free port; the caller stops it."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    # Asked often whether it shall end: each test waits for that.
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.server = server
    return hub


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Else a body waits 40 ms until its head's arrival is told.
    disable_nagle_algorithm = True
    state: Hub

    def log_message(self, *_: object) -> None:
        """Silent: tests look at what the client prints."""

    def _handle(self) -> None:
        hub, path = self.state, urlsplit(self.path).path
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        hub.requests.append(f"{self.command} {path}")
        for fault in hub.faults:
            if fault.times and re.search(fault.pattern, path):
                fault.times -= 1
                if isinstance(fault.answer, str):
                    self._break_off(fault.answer)
                    return
                if isinstance(fault.answer, bytes):
                    self._answer(200, fault.answer, fault.headers)
                    return
                error = {"error": "told to fail"}
                self._answer(fault.answer, error, fault.headers)
                return
        # Storage has addresses that are signed: no token may go there. Cards are
        # checked for everyone.
        open_to_all = path.startswith("/storage/") or path == "/api/validate-yaml"
        if path.startswith("/storage/") and "Authorization" in self.headers:
            hub.requests.append("the token went to the storage")
        if not open_to_all and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid username or password."})
            return
        for command, pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, path)
            if command == self.command and found:
                answer(self, body, *found.groups())
                return
        self._answer(404, {"error": f"no {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _break_off(self, how: str) -> None:
        if how == "wait":
            threading.Event().wait(1)  # not `sleep`, which tests replace
        if how == "half":
            self.send_response(200)
            for name, text in {"Content-Length": "1000", "ETag": '"0"'}.items():
                self.send_header(name, text)
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            self.wfile.write(b"{")
            self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(
        self, status: int, content: object, headers: dict[str, str] | None = None
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def whoami(self, body: bytes) -> None:
        self._answer(200, {"name": "me", "type": "user", "orgs": []})

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        repo_id = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        address = {"url": f"{self.state.url}/{repo_id}"}
        if repo_id in self.state.repositories:
            self._answer(409, {"error": "You already created this repo", **address})
            return
        self.state.repositories[repo_id] = {}
        self.state.private[repo_id] = wanted.get("visibility") == "private" or bool(
            wanted.get("private")
        )
        self._answer(200, address)

    def validate(self, body: bytes) -> None:
        wrong = check_card(json.loads(body)["content"])
        errors = [{"message": text} for text in wrong]
        self._answer(400 if wrong else 200, {"errors": errors, "warnings": []})

    def preupload(self, body: bytes, repo_id: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._answer(200, {"files": files})

    def batch(self, body: bytes, repo_id: str) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            oid = wanted["oid"]
            upload = {"href": f"{self.state.url}/storage/{oid}"}
            verify = {"href": f"{self.state.url}/verify"}
            actions = {"upload": upload, "verify": verify}
            objects.append({**wanted, "actions": actions})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def store(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self._answer(400, {"error": "another hash"})
            return
        self.state.large[oid] = body
        self._answer(200, {})

    def verify(self, body: bytes) -> None:
        oid = json.loads(body)["oid"]
        self._answer(200 if oid in self.state.large else 404, {})

    def commit(self, body: bytes, repo_id: str) -> None:
        if repo_id not in self.state.repositories:
            self._answer(404, {"error": "Repository not found"})
            return
        added = {}
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                added[value["path"]] = self.state.large[value["oid"]]
        self.state.repositories[repo_id] |= added
        url = f"{self.state.url}/{repo_id}/commit/{COMMIT}"
        self._answer(200, {"commitUrl": url, "commitOid": COMMIT})

    def info(self, body: bytes, repo_id: str) -> None:
        if repo_id not in self.state.repositories:
            error = {"X-Error-Code": "RepoNotFound"}
            self._answer(404, {"error": "Repository not found"}, error)
            return
        files = self.state.repositories[repo_id]
        siblings = [{"rfilename": n, "size": len(data)} for n, data in files.items()]
        self._answer(200, {"id": repo_id, "sha": COMMIT, "siblings": siblings})

    def tree(self, body: bytes, repo_id: str) -> None:
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
            for name, data in self.state.repositories[repo_id].items()
        ]
        self._answer(200, entries)

    def resolve(self, body: bytes, repo_id: str, name: str) -> None:
        data = self.state.repositories[repo_id].get(name)
        if data is None:
            self._answer(404, {}, {"X-Error-Code": "EntryNotFound"})
            return
        etag = hashlib.sha256(data).hexdigest()
        self._answer(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})


_ID = r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", f"/api/models/{_ID}/preupload/main", _Handler.preupload),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/storage/([0-9a-f]+)", _Handler.store),
    ("POST", "/verify", _Handler.verify),
    ("POST", f"/api/models/{_ID}/commit/main", _Handler.commit),
    ("GET", f"/api/models/{_ID}(?:/revision/(?:main|{COMMIT}))?", _Handler.info),
    ("GET", f"/api/models/{_ID}/tree/(?:main|{COMMIT})", _Handler.tree),
    ("HEAD", f"/{_ID}/resolve/(?:main|{COMMIT})/(.+)", _Handler.resolve),
    ("GET", f"/{_ID}/resolve/(?:main|{COMMIT})/(.+)", _Handler.resolve),
]
