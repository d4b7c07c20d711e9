"""A Bedrock runtime on real sockets: it checks every signature, and answers as the provider does.

Facts
  - Paths, answers, errors and their statuses: Bedrock Runtime API reference. An error's name is in
    ``x-amzn-ErrorType``, with a namespace behind a colon.
  - Frames of ``application/vnd.amazon.eventstream``: length, length of the headers, CRC-32 of both, headers,
    payload, CRC-32 of all (Smithy, Amazon Event Stream Specification).
  - InvokeModelWithResponseStream wraps each event of the model as base64; the last one also has
    ``amazon-bedrock-invocationMetrics``. Frames are padded with a member ``p``.

Rules
  1. A request is signed by credentials that this provider knows, for its region and service, or it has one of
     its bearer keys; else it is refused, as AWS refuses it.
  2. The same request has the same answer.

Not here: how signatures are checked (`bedrock_signatures`).
"""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import unquote

import pytest
from bedrock_signatures import Credentials, Refused, Signed, check
from scripted import LAST_CHUNK, Conn, Request, Step, Upstream, answer, chunk, head, sse, stream_head

OURS = Credentials("sk-test-access-ours", "sk-test-secret/ours+")
"""What the proxy signs with, unless a test says otherwise."""

THEIRS = Credentials("sk-test-access-theirs", "sk-test-secret/theirs", "sk-test-token/theirs==")
"""What clients sign with."""

WORDS = ("Grüß", " Gott", " 🙂", " — said by ")

_JSON = (b"Content-Type", b"application/json")
_FRAMES = (b"Content-Type", b"application/vnd.amazon.eventstream")
_FRAMES_OF = (b"X-Amzn-Bedrock-Content-Type", b"application/json")
_REQUEST_ID = (b"x-amzn-RequestId", b"11111111-2222-4333-8444-555555555555")

_MODEL = re.compile(
    rb"/model/([^/]+)/(converse|converse-stream|invoke|invoke-with-response-stream|count-tokens)"
)

FAULTS = {
    "throttled": (429, "ThrottlingException"),
    "unavailable": (503, "ServiceUnavailableException"),
    "invalid": (400, "ValidationException"),
    "denied": (403, "AccessDeniedException"),
    "broken": (424, "ModelErrorException"),
}
"""What a model is answered whose name begins so. In streams, ``cut`` and ``erring`` break off."""

USAGE = {
    "inputTokens": 11,
    "outputTokens": 7,
    "totalTokens": 23,
    "cacheReadInputTokens": 3,
    "cacheWriteInputTokens": 2,
    "cacheDetails": [{"ttl": "1h", "inputTokens": 2}],
}
CLAUDE_USAGE = {
    "input_tokens": 11,
    "cache_creation_input_tokens": 2,
    "cache_read_input_tokens": 3,
    "output_tokens": 1,
}
METRICS = {
    "inputTokenCount": 11,
    "outputTokenCount": 7,
    "invocationLatency": 512,
    "firstByteLatency": 218,
    "cacheReadInputTokenCount": 3,
    "cacheWriteInputTokenCount": 2,
}
THINKING = {"reasoningText": {"text": "Hm.", "signature": "c2lnbmVkIGJ5IHRoZSBtb2RlbA=="}}


def frame(headers: Iterable[tuple[str, str]], payload: bytes) -> bytes:
    """One message of an event stream; every header is a string."""
    head_bytes = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value.encode()
        for name, value in headers
    )
    lengths = struct.pack("!II", 16 + len(head_bytes) + len(payload), len(head_bytes))
    message = lengths + struct.pack("!I", zlib.crc32(lengths)) + head_bytes + payload
    return message + struct.pack("!I", zlib.crc32(message))


def event(kind: str, data: dict[str, Any], padding: str = "abcdefgh") -> bytes:
    """One event, as JSON."""
    headers = [(":event-type", kind), (":content-type", "application/json"), (":message-type", "event")]
    return frame(headers, _json(data | {"p": padding}))


def exception(kind: str, message: str) -> bytes:
    """The frame that ends a stream which has failed."""
    headers = [
        *((":exception-type", kind), (":content-type", "application/json")),
        (":message-type", "exception"),
    ]
    return frame(headers, _json({"message": message}))


def wrapped(data: dict[str, Any]) -> bytes:
    """An event of the model's own, as InvokeModelWithResponseStream has it."""
    return event("chunk", {"bytes": base64.b64encode(_json(data)).decode()})


def _json(data: object) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def converse_frames(model: str) -> list[bytes]:
    """The stream of a conversation."""
    words = (*WORDS, model)
    deltas = [{"delta": {"text": word}, "contentBlockIndex": 1} for word in words]
    signature = {"reasoningContent": {"signature": THINKING["reasoningText"]["signature"]}}
    return [
        event("messageStart", {"role": "assistant"}),
        event("contentBlockDelta", {"delta": {"reasoningContent": {"text": "Hm."}}, "contentBlockIndex": 0}),
        event("contentBlockDelta", {"delta": signature, "contentBlockIndex": 0}),
        event("contentBlockStop", {"contentBlockIndex": 0}),
        *(event("contentBlockDelta", delta) for delta in deltas),
        event("contentBlockStop", {"contentBlockIndex": 1}),
        event("messageStop", {"stopReason": "end_turn"}),
        event("metadata", {"metrics": {"latencyMs": 512}, "usage": USAGE}),
    ]


def claude_events(model: str) -> list[dict[str, Any]]:
    """The same of Claude's own."""
    message = claude_message(model) | {"content": [], "stop_reason": None, "usage": CLAUDE_USAGE}
    text = [{"type": "text_delta", "text": word} for word in (*WORDS, model)]
    return [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in text),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 7},
        },
        {"type": "message_stop"},
    ]


def claude_message(model: str) -> dict[str, Any]:
    return {
        "id": "msg_bdrk_01",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": "".join(WORDS) + model}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": CLAUDE_USAGE | {"output_tokens": 7},
    }


class BedrockUpstream(Upstream):
    """The runtime of one region. `models` are those that were asked for, decoded, in order."""

    def __init__(
        self,
        *,
        region: str = "us-east-1",
        service: str = "bedrock",
        credentials: Iterable[Credentials] = (OURS, THEIRS),
        bearers: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.region = region
        self.service = service
        self.known = {each.access_key: each for each in credentials}
        self.bearers = {f"Bearer {each}".encode() for each in bearers}
        self.signed: list[Signed | str] = []
        """Of each request: its signature, or why it was refused, or ``bearer``."""
        self.models: list[str] = []
        self.sent: list[bytes] = []
        """The bodies of the answers."""

    def next_step(self) -> Step:
        """Every request is answered, however many there are."""
        self.arrived += 1
        return self._answer

    async def _answer(self, conn: Conn, request: Request) -> None:
        try:
            self._admit(request)
        except Refused as refused:
            self.signed.append(str(refused))
            status = 400 if refused.kind == "IncompleteSignatureException" else 403
            await self._refuse(conn, status, refused.kind, str(refused))
            return
        path = request.target.partition(b"?")[0]
        found = _MODEL.fullmatch(path)
        if found:
            model = unquote(found[1].decode())
            self.models.append(model)
            await self._model(conn, model, found[2].decode(), request)
        elif path == b"/anthropic/v1/messages":
            asked = json.loads(request.body)
            self.models.append(asked["model"])
            await self._messages(conn, asked["model"], stream=asked.get("stream", False))
        elif path == b"/async-invoke":
            await self._json(conn, {"asyncInvokeSummaries": []})
        elif path.startswith(b"/guardrail/"):
            await self._json(conn, {"action": "NONE", "outputs": [], "assessments": [], "usage": {}})
        else:
            await self._refuse(conn, 404, "UnknownOperationException", f"no operation at {path!r}")

    def _admit(self, request: Request) -> None:
        authorization = request.values("authorization")
        if len(authorization) == 1 and authorization[0] in self.bearers:
            self.signed.append("bearer")
            return
        signed = check(request, self.known)
        if (signed.region, signed.service) != (self.region, self.service):
            where = f"{signed.service} in {signed.region}"
            raise Refused("InvalidSignatureException", f"the credential is scoped to {where}")
        self.signed.append(signed)

    async def _model(self, conn: Conn, model: str, operation: str, request: Request) -> None:
        fault = FAULTS.get(model.partition("-")[0])
        if fault is not None:
            await self._refuse(conn, fault[0], fault[1], f"{model} does this")
        elif model.startswith("silent"):
            await conn.gone()
        elif operation == "converse":
            content = [{"reasoningContent": THINKING}, {"text": "".join(WORDS) + model}]
            await self._json(
                conn,
                {
                    "metrics": {"latencyMs": 512},
                    "output": {"message": {"content": content, "role": "assistant"}},
                    "stopReason": "end_turn",
                    "usage": USAGE,
                },
            )
        elif operation == "invoke":
            counts = [
                (b"X-Amzn-Bedrock-Input-Token-Count", b"11"),
                (b"X-Amzn-Bedrock-Output-Token-Count", b"7"),
            ]
            await self._json(conn, claude_message(model), counts)
        elif operation == "count-tokens":
            await self._json(conn, {"inputTokens": len(request.body)})
        elif operation == "converse-stream":
            await self._stream(conn, model, converse_frames(model))
        else:
            events = claude_events(model)
            events[-1] |= {"amazon-bedrock-invocationMetrics": METRICS}
            await self._stream(conn, model, [wrapped(each) for each in events])

    async def _stream(self, conn: Conn, model: str, frames: list[bytes]) -> None:
        await conn.send(stream_head([_FRAMES, _FRAMES_OF, _REQUEST_ID]))
        if model.startswith("erring"):
            frames = [*frames[:3], exception("modelStreamErrorException", f"{model} does this")]
        self.sent.append(b"".join(frames))
        for number, each in enumerate(frames):
            if model.startswith("cut") and number == 5:
                # In the middle of a frame.
                await conn.send(chunk(each[:20]))
                await conn.close()
                return
            await conn.send(chunk(each))
        await conn.send(LAST_CHUNK)

    async def _messages(self, conn: Conn, model: str, *, stream: bool) -> None:
        """Claude at Bedrock in its own wire format."""
        if not stream:
            await self._json(conn, claude_message(model))
            return
        events = [sse(each["type"], each) for each in claude_events(model)]
        self.sent.append(b"".join(events))
        await conn.send(head(200, [(b"Content-Type", b"text/event-stream"), _REQUEST_ID]))
        await conn.send(b"".join(events))
        await conn.close()

    async def _json(
        self, conn: Conn, data: dict[str, Any], headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        self.sent.append(_json(data))
        await conn.send(answer(200, [_JSON, _REQUEST_ID, *headers], _json(data)))

    async def _refuse(self, conn: Conn, status: int, kind: str, message: str) -> None:
        named = (b"x-amzn-ErrorType", f"{kind}:http://internal.amazon.com/coral/".encode())
        await conn.send(answer(status, [_JSON, _REQUEST_ID, named], _json({"message": message})))


StartBedrock = Callable[..., Awaitable[BedrockUpstream]]


@pytest.fixture
def bedrock(_upstreams: list[Upstream]) -> StartBedrock:
    """Starts a Bedrock runtime: ``up = await bedrock(region="eu-west-1")``."""

    async def start(**options: Any) -> BedrockUpstream:
        started = BedrockUpstream(**options)
        await started.start()
        _upstreams.append(started)
        return started

    return start
