"""Google's Gemini API on a real socket: the same answers every time, and every request kept as it came.

Facts
  - Answers are indented JSON; a stream with ``alt=sse`` is unnamed ``data:`` lines, each with CRLF CRLF.
    A stream without it is a JSON array. Each chunk has the usage so far (ai.google.dev, generateContent).
  - An error is ``{"error": {"code", "message", "status"}}``; no key at all is a 403 (google.rpc.Status).
  - A resumable upload begins with an empty 200 whose ``x-goog-upload-url`` names the provider's own host, and
    a session in its query. Who has that URL needs no key (google-gemini/cookbook, file-api/sample.sh).
  - In ``batchEmbedContents`` the model of each request must be the path's (BatchEmbedContentsRequest).

Rules
  1. Ids count up and dates stand still: nothing in an answer depends on clock or chance.
  2. It is as strict as the real one where a proxy could go wrong: an unknown model, a model with a slash, a
     field that the API does not have, another model inside than outside, no key.

Not here: any judgement on the requests; the tests look at `requests`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, unquote

from scripted import LAST_CHUNK, Conn, Request, Step, Upstream, chunk, head

Json = dict[str, Any]
Between = Callable[[list[bytes]], Awaitable[None]]

DATE = "2026-01-01T00:00:00Z"
JSON_UTF8 = (b"Content-Type", b"application/json; charset=UTF-8")
SERVER = (b"Server", b"scaffolding on HTTPServer2")
VARY = [(b"Vary", b"Origin"), (b"Vary", b"X-Origin"), (b"Vary", b"Referer")]
SSE = [(b"Content-Type", b"text/event-stream"), (b"Content-Disposition", b"attachment")]

STATUSES = {400: "INVALID_ARGUMENT", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 503: "UNAVAILABLE"}

MODELS = ("gemini-2.5-flash", "gemini-2.5-pro", "gemini-embedding-001", "gemini-tuned+v1@2")
OVERLOADED = "demo-overloaded"
"""The model that is always overloaded."""
BROKEN = "demo-broken"
"""The model whose streams end with an error after their first chunk."""
BROKEN_AT_ONCE = "demo-broken-at-once"
"""The model whose streams are nothing but an error."""

FIELDS = frozenset(
    (
        *("contents", "generationConfig", "systemInstruction", "tools", "toolConfig", "safetySettings"),
        *("model", "cachedContent", "content", "requests", "generateContentRequest"),
    )
)
"""The members that a model's operations know; Google refuses any other."""

PATH = re.compile(r"/(?:v1|v1beta|v1alpha)/(.+)")
UPLOAD = re.compile(r"/upload/(?:v1|v1beta)/files")
OPERATION = re.compile(r"models/([^/:]+):(\w+)")


class Refused(Exception):
    """A request that the API does not take."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class GenaiUpstream(Upstream):
    """Answers every request on its own. `name` is in all that it says.

    `between` is awaited before each chunk of a stream and before its end; it is given those before.
    """

    def __init__(self, name: str = "gemini", between: Between | None = None) -> None:
        super().__init__()
        self.name = name
        self.files: dict[str, Json] = {}
        self.contents: dict[str, bytes] = {}
        self.streams: list[list[bytes]] = []
        """The chunks of every stream that was sent."""
        self._between = between
        self._uploads: dict[str, tuple[Json, bytes]] = {}

    def next_step(self) -> Step:
        self.arrived += 1
        return self._answer

    async def _answer(self, conn: Conn, request: Request) -> None:
        path, _, query = request.target.decode("latin-1").partition("?")
        try:
            await self._serve(conn, request, unquote(path), parse_qs(query, keep_blank_values=True))
        except Refused as refused:
            error = {"code": refused.status, "message": str(refused), "status": STATUSES[refused.status]}
            await conn.send(whole({"error": error}, refused.status))

    async def _serve(self, conn: Conn, request: Request, path: str, query: dict[str, list[str]]) -> None:
        session = query.get("upload_id", [""])[0]
        if UPLOAD.fullmatch(path) and session:
            await conn.send(self._received(session, request))
            return
        if not request.values("x-goog-api-key") and not query.get("key"):
            raise Refused(403, "Method doesn't allow unregistered callers. Please use API Key.")
        if UPLOAD.fullmatch(path):
            await conn.send(self._begun(request))
            return
        found = PATH.fullmatch(path)
        if found is None:
            raise Refused(404, f"The requested URL {path} was not found on this server.")
        resource = found[1]
        if operation := OPERATION.fullmatch(resource):
            await self._operate(conn, request, operation[1], operation[2], query)
        elif resource.split("/")[0] == "files":
            await conn.send(self._of_files(request.method, resource))
        else:
            await conn.send(self._of_models(resource))

    async def _operate(
        self, conn: Conn, request: Request, model: str, operation: str, query: dict[str, list[str]]
    ) -> None:
        body = json.loads(request.body)
        if model not in (*MODELS, OVERLOADED, BROKEN, BROKEN_AT_ONCE):
            raise Refused(404, f"models/{model} is not found for API version v1beta.")
        if unknown := body.keys() - FIELDS:
            raise Refused(400, f'Invalid JSON payload received. Unknown name "{min(unknown)}".')
        if model == OVERLOADED:
            raise Refused(503, "The model is overloaded. Please try again later.")
        if operation == "streamGenerateContent":
            await self._stream(conn, self._chunks(model, body), query.get("alt") == ["sse"])
            return
        answers = {
            "generateContent": self._generated,
            "countTokens": _counted,
            "embedContent": _embedded,
            "batchEmbedContents": _embedded_all,
        }
        if operation not in answers:
            raise Refused(404, f"models/{model} has no method {operation}.")
        await conn.send(whole(answers[operation](model, body)))

    def _words(self, body: Json) -> list[str]:
        # U+2028 ends a line for readers that take more than CR and LF for line ends.
        return re.findall(r"\s*\S+", f"You said “{_said(body)}”.\u2028 Yours verbatim, {self.name} 🙂.")

    def _generated(self, model: str, body: Json) -> Json:
        words = self._words(body)
        parts: list[Json] = [{"text": "".join(words), "thoughtSignature": "c2lnbmF0dXJlIG9mIGEgdGhvdWdodA=="}]
        if "tools" in body:
            parts = [{"functionCall": {"name": "weather", "args": {"city": "Köln"}}, **parts[0]}]
            del parts[0]["text"]
        return _response(model, body, parts, len(words), "STOP")

    def _chunks(self, model: str, body: Json) -> list[Json]:
        words = self._words(body)
        chunks = [
            _response(model, body, [{"text": word}], count, "STOP" if count == len(words) else None)
            for count, word in enumerate(words, 1)
        ]
        if model in (BROKEN, BROKEN_AT_ONCE):
            error = {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}
            return [*chunks[: model == BROKEN], {"error": error}]
        return chunks

    async def _stream(self, conn: Conn, chunks: list[Json], sse: bool) -> None:
        await conn.send(head(200, [*(SSE if sse else [JSON_UTF8]), *VARY, SERVER, CHUNKED]))
        sent: list[bytes] = []
        self.streams.append(sent)
        for index, data in enumerate(chunks):
            if sse:
                text = f"data: {json.dumps(data, ensure_ascii=False)}\r\n\r\n"
            else:
                text = (",\r\n" if index else "[") + json.dumps(data, ensure_ascii=False, indent=2) + "\n"
            if self._between is not None:
                await self._between(sent)
            sent.append(text.encode())
            await conn.send(chunk(sent[-1]))
        if self._between is not None:
            await self._between(sent)
        await conn.send((b"" if sse else chunk(b"]")) + LAST_CHUNK)

    def _begun(self, request: Request) -> bytes:
        """The answer to the first request of an upload."""
        if request.header("x-goog-upload-command") != b"start":
            raise Refused(400, "Only resumable uploads are taken here.")
        session = f"AP-{len(self._uploads) + 1:06d}"
        told = json.loads(request.body or b"{}").get("file", {})
        kind = (request.header("x-goog-upload-header-content-type") or b"").decode()
        named = {"displayName": told.get("displayName", told.get("display_name"))}
        named |= {"name": told["name"]} if "name" in told else {}
        self._uploads[session] = {**named, "mimeType": kind}, b""
        url = f"{self.url}{request.target.decode().partition('?')[0]}?upload_id={session}"
        fields = [
            (b"X-Goog-Upload-Status", b"active"),
            (b"X-Goog-Upload-URL", f"{url}&upload_protocol=resumable".encode()),
            (b"X-Goog-Upload-Control-URL", f"{url}&upload_protocol=resumable".encode()),
            (b"X-Goog-Upload-Chunk-Granularity", b"8388608"),
        ]
        return head(200, [*fields, (b"Content-Length", b"0")])

    def _received(self, session: str, request: Request) -> bytes:
        """The answer to a part of an upload."""
        if session not in self._uploads:
            raise Refused(404, "Upload session not found.")
        told, content = self._uploads[session]
        command = (request.header("x-goog-upload-command") or b"").decode()
        if request.header("x-goog-upload-offset") != b"%d" % len(content):
            raise Refused(400, "The offset is not where the upload stands.")
        content += request.body
        self._uploads[session] = told, content
        if "finalize" not in command:
            status = [(b"X-Goog-Upload-Status", b"active"), (b"Content-Length", b"0")]
            return head(200, status)
        name = told.get("name", f"files/demo{len(self.contents) + 1:06d}")
        self.contents[name] = content
        self.files[name] = {
            "name": name,
            **told,
            "sizeBytes": str(len(content)),
            "createTime": DATE,
            "sha256Hash": base64.b64encode(hashlib.sha256(content).hexdigest().encode()).decode(),
            "uri": f"{self.url}/v1beta/{name}",
            "state": "ACTIVE",
            "source": "UPLOADED",
        }
        return whole({"file": self.files[name]}, fields=[(b"X-Goog-Upload-Status", b"final")])

    def _of_files(self, method: str, resource: str) -> bytes:
        if resource == "files":
            return whole({"files": list(self.files.values())})
        if resource not in self.files:
            raise Refused(403, "You do not have permission to access the File or it may not exist.")
        if method == "DELETE":
            del self.files[resource]
            return whole({})
        return whole(self.files[resource])

    def _of_models(self, resource: str) -> bytes:
        if resource == "models":
            return whole({"models": [_model(name) for name in MODELS]})
        if resource.removeprefix("models/") not in MODELS:
            raise Refused(404, f"Model is not found: {resource} for api version v1beta")
        return whole(_model(resource.removeprefix("models/")))


CHUNKED = (b"Transfer-Encoding", b"chunked")


def whole(data: object, status: int = 200, fields: list[tuple[bytes, bytes]] | None = None) -> bytes:
    """An answer that is no stream; chunked all the same, as Google sends it."""
    body = json.dumps(data, ensure_ascii=False, indent=2).encode() + b"\n"
    return head(status, [JSON_UTF8, *VARY, SERVER, *(fields or []), CHUNKED]) + chunk(body) + LAST_CHUNK


def _said(body: Json) -> str:
    """The last text of the user."""
    texts = [part["text"] for content in body["contents"] for part in content["parts"] if "text" in part]
    return str(texts[-1])


def _response(model: str, body: Json, parts: list[Json], words: int, reason: str | None) -> Json:
    asked = len(_said(body).split())
    candidate: Json = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if reason is not None:
        candidate["finishReason"] = reason
    return {
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": asked,
            "candidatesTokenCount": words,
            "totalTokenCount": asked + words,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": asked}],
        },
        "modelVersion": model,
        "responseId": "c29tZSByZXNwb25zZQ",
    }


def _counted(model: str, body: Json) -> Json:
    inner = body.get("generateContentRequest", body)
    if inner.get("model", f"models/{model}") != f"models/{model}":
        raise Refused(400, f"The model of generateContentRequest must match models/{model}.")
    count = len(_said(inner).split())
    return {"totalTokens": count, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": count}]}


def _vector(text: str) -> Json:
    return {"values": [byte / 256 for byte in hashlib.sha256(text.encode()).digest()[:4]]}


def _embedded(model: str, body: Json) -> Json:
    if body.get("model", f"models/{model}") != f"models/{model}":
        raise Refused(400, f"The model of the request must match models/{model}.")
    return {"embedding": _vector(json.dumps(body["content"]))}


def _embedded_all(model: str, body: Json) -> Json:
    inner = [request.get("model") for request in body["requests"]]
    if inner != [f"models/{model}"] * len(inner):
        raise Refused(400, f"BatchEmbedContentsRequest.requests: the model must be models/{model}: {inner}")
    return {"embeddings": [_vector(json.dumps(request["content"])) for request in body["requests"]]}


def _model(name: str) -> Json:
    return {
        "name": f"models/{name}",
        "version": "001",
        "displayName": name,
        "inputTokenLimit": 1048576,
        "outputTokenLimit": 65536,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
    }
