"""What Anthropic's API of the demo's upstream says: checks on what is asked, whole answers, and streams.

Facts
  - Every streamed event is ``event: NAME``, ``data: {JSON on one line}``, a blank line; LF; no ``[DONE]``
    (platform.claude.com, streaming page).
  - ``/v1/complete`` streams by ``anthropic-version``. 2023-06-01: named events, each with its own piece of
    text. 2023-01-01: data alone, each with the whole text so far, then ``data: [DONE]`` (versioning page).
    The old wire's line ends are not documented; CRLF is written here, the harder one to relay.
  - ``fallbacks`` without its beta header is refused: "Extra inputs are not permitted".

Not here: routes, ids, and what the upstream keeps (`demo_anthropic`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from .demo_answers import (
    DATE,
    ERROR,
    THINKING,
    Json,
    Pace,
    Step,
    count,
    field,
    invalid,
    reply,
    text_of,
    words_of,
)

_EMPTY = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}
_MID_STREAM_ERROR = (
    b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
)


def check_messages(body: Json, headers: Mapping[str, str], *, counting: bool = False) -> None:
    """Refuse a body that ``/v1/messages`` refuses; for count_tokens, without ``max_tokens``."""
    field(body, "model", str)
    if not counting and field(body, "max_tokens", int) < 1:
        raise invalid("max_tokens: Input should be greater than or equal to 1")
    for index, message in enumerate(field(body, "messages", list)):
        where = f"messages.{index}."
        if type(message) is not dict:
            raise invalid(f"messages.{index}: Input should be a valid dictionary")
        if field(message, "role", str, where) not in ("user", "assistant"):
            raise invalid(f"{where}role: Input should be 'user' or 'assistant'")
        content = message.get("content")
        blocks = content if type(content) is list else []
        if (
            not content
            or type(content) not in (str, list)
            or not all(type(block) is dict for block in blocks)
        ):
            raise invalid(f"{where}content: Input should be a valid string or list of blocks, and not empty")
    if "fallbacks" in body and "server-side-fallback" not in headers.get("anthropic-beta", ""):
        raise invalid("fallbacks: Extra inputs are not permitted")


def check_completion(body: Json) -> None:
    """Refuse a body that ``/v1/complete`` refuses."""
    field(body, "model", str)
    if field(body, "max_tokens_to_sample", int) < 1:
        raise invalid("max_tokens_to_sample: Input should be greater than or equal to 1")
    if "\n\nAssistant:" not in field(body, "prompt", str).partition("\n\nHuman:")[2]:
        raise invalid('prompt: must hold "\\n\\nHuman:" and after it "\\n\\nAssistant:"')
    if "fallbacks" in body:
        raise invalid("fallbacks: Extra inputs are not permitted")


def check_batch(requests: list[Any], headers: Mapping[str, str]) -> None:
    """Refuse requests that ``/v1/messages/batches`` refuses."""
    for index, item in enumerate(requests):
        if type(item) is not dict:
            raise invalid(f"requests.{index}: Input should be a valid dictionary")
        field(item, "custom_id", str, f"requests.{index}.")
        check_messages(field(item, "params", dict, f"requests.{index}."), headers)


def count_tokens(body: Json) -> int:
    """How many words a messages body holds, the system prompt included."""
    return count([text_of(body.get("system")), *(text_of(turn["content"]) for turn in body["messages"])])


def message(body: Json, message_id: str, name: str) -> Json:
    """The whole answer to ``POST /v1/messages``, signed `name`. `body` was checked."""
    said, stopped = reply(text_of(body["messages"][-1]["content"]), name, body["max_tokens"])
    content: list[Json] = [{"type": "text", "text": "".join(said)}]
    thought = ""
    if body["model"] == THINKING:
        thought = "They would like to hear that a ping keeps a silent line open."
        content.insert(0, {"type": "thinking", "thinking": thought, "signature": "c2lnbmVkIGJ5IHRoZSBkZW1v"})
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": content,
        "stop_reason": "max_tokens" if stopped else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": count_tokens(body), "output_tokens": len(thought.split() + said)},
    }


def completion(body: Json, completion_id: str, name: str) -> Json:
    """The whole answer to ``POST /v1/complete``, signed `name`. `body` was checked."""
    asked = body["prompt"].rpartition("\n\nHuman:")[2].partition("\n\nAssistant:")[0]
    said, stopped = reply(asked, name, body["max_tokens_to_sample"])
    return {
        "type": "completion",
        "id": completion_id,
        "completion": " " + "".join(said),
        "stop_reason": "max_tokens" if stopped else "stop_sequence",
        "model": body["model"],
        "stop": None if stopped else "\n\nHuman:",
        "log_id": completion_id,
    }


class Batch:
    """A message batch. It ends when it is looked at: nobody waits, and the order of calls decides all."""

    def __init__(self, batch_id: str, requests: list[Json]) -> None:
        self.batch_id = batch_id
        self._requests = requests
        self._status = "in_progress"
        self._canceled = False

    def cancel(self) -> Batch:
        """Cancel what has not ended yet."""
        if self._status == "in_progress":
            self._status, self._canceled = "canceling", True
        return self

    def end(self) -> Batch:
        self._status = "ended"
        return self

    def shown(self, base_url: str) -> Json:
        """The batch object; `results_url` lies below `base_url`."""
        ended = self._status == "ended"
        state = "processing" if not ended else "canceled" if self._canceled else "succeeded"
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        return {
            "id": self.batch_id,
            "type": "message_batch",
            "processing_status": self._status,
            "request_counts": {**counts, state: len(self._requests)},
            "ended_at": DATE if ended else None,
            "created_at": DATE,
            "expires_at": DATE,
            "archived_at": None,
            "cancel_initiated_at": DATE if self._canceled else None,
            "results_url": f"{base_url}/v1/messages/batches/{self.batch_id}/results" if ended else None,
        }

    def results(self, name: str) -> bytes:
        """One JSON line per request, its message signed `name`."""
        lines = []
        for number, item in enumerate(self._requests):
            result: Json = {"type": "canceled"}
            if not self._canceled:
                answer = message(item["params"], f"{self.batch_id}_{number}", name)
                result = {"type": "succeeded", "message": answer}
            lines.append(orjson.dumps({"custom_id": item["custom_id"], "result": result}) + b"\n")
        return b"".join(lines)


def message_events(answer: Json, pace: Pace) -> Iterator[Step]:
    """A `message` as its stream: a pause before each delta, the long one before the first thought."""
    silent = answer["model"] == THINKING
    usage = {**answer["usage"], "output_tokens": 1}
    start = {**answer, "content": [], "stop_reason": None, "usage": usage}
    yield 0, event("message_start", {"message": start})
    for index, block in enumerate(answer["content"]):
        yield 0, event("content_block_start", {"index": index, "content_block": _EMPTY[block["type"]]})
        if index == 0 and not silent:
            yield 0, event("ping", {})
        for number, delta in enumerate(_deltas(block)):
            if answer["model"] == ERROR and number == 3:
                yield pace.interval, _MID_STREAM_ERROR
                return
            wait = pace.silence if silent and index == number == 0 else pace.interval
            yield wait, event("content_block_delta", {"index": index, "delta": delta})
        yield 0, event("content_block_stop", {"index": index})
    delta = {"stop_reason": answer["stop_reason"], "stop_sequence": None}
    usage = {"output_tokens": answer["usage"]["output_tokens"]}
    yield 0, event("message_delta", {"delta": delta, "usage": usage})
    yield 0, event("message_stop", {})


def completion_events(answer: Json, pace: Pace) -> Iterator[Step]:
    """A `completion` as the stream of version 2023-06-01: named events, each with its own word."""
    if answer["model"] != THINKING:
        yield 0, event("ping", {})
    for wait, word in pace.words(answer["model"], answer["completion"]):
        piece = {**answer, "completion": word, "stop_reason": None, "stop": None}
        yield wait, event("completion", piece)
    if answer["model"] == ERROR:
        yield pace.interval, _MID_STREAM_ERROR
    else:
        yield 0, event("completion", {**answer, "completion": ""})


def cumulative_events(answer: Json, pace: Pace) -> Iterator[Step]:
    """A `completion` as the stream of version 2023-01-01: data alone, each with the whole text so far."""
    text = ""
    for wait, word in pace.words(answer["model"], answer["completion"]):
        text += word
        piece = {**answer, "completion": text, "stop_reason": None, "stop": None}
        yield wait, _old_event(piece)
    if answer["model"] == ERROR:
        yield pace.interval, _MID_STREAM_ERROR
    else:
        yield 0, _old_event(answer)
        yield 0, b"data: [DONE]\r\n\r\n"


def event(name: str, fields: Json) -> bytes:
    """One SSE event as Anthropic writes it; the event's name is its data's ``type`` too."""
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps({"type": name, **fields}) + b"\n\n"


def _old_event(piece: Json) -> bytes:
    whole = {**piece, "truncated": piece["stop_reason"] == "max_tokens", "exception": None}
    return b"data: " + orjson.dumps(whole) + b"\r\n\r\n"


def _deltas(block: Json) -> Iterator[Json]:
    kind = block["type"]
    for word in words_of(block[kind]):
        yield {"type": f"{kind}_delta", kind: word}
    if kind == "thinking":
        yield {"type": "signature_delta", "signature": block["signature"]}
