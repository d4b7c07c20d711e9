"""Jobs under a real SDK, sync and async; prints one JSON object. Arguments: BASE_URL KEY."""

import asyncio
import json
import sys
import time

import anthropic

SUBMIT = {"x-bf-async": "true"}
MESSAGE = {
    "model": "demo-thinking",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "Sag »grüß Gott« 🙂, please"}],
}
COMPLETION = {
    "model": "claude-2",
    "max_tokens_to_sample": 64,
    "prompt": "\n\nHuman: Sag »grüß Gott«\n\nAssistant:",
}
BAD = {
    "bad_request": {**MESSAGE, "max_tokens": -1},
    "server_error": {**MESSAGE, "model": "demo-error"},
    "overloaded": {**MESSAGE, "model": "demo-overloaded"},
}
PAUSE = 0.02


def polls(id):
    return {"x-bf-async-id": id}


def ended(create, asked, member):
    """A job's answers: those without the answer of the provider, and the one with it."""
    empty = [create(**asked, extra_headers=SUBMIT)]
    while True:
        answer = create(**asked, extra_headers=polls(empty[0].id))
        if getattr(answer, member):
            return shown(empty, answer)
        empty.append(answer)
        time.sleep(PAUSE)


async def async_ended(create, asked, member):
    empty = [await create(**asked, extra_headers=SUBMIT)]
    while True:
        answer = await create(**asked, extra_headers=polls(empty[0].id))
        if getattr(answer, member):
            return shown(empty, answer)
        empty.append(answer)
        await asyncio.sleep(PAUSE)


def shown(empty, answer):
    return {
        "empty": [each.to_dict(mode="json") for each in empty],
        "result": answer.to_dict(mode="json"),
        "request_id": answer._request_id,
    }


def raised(client, asked):
    """What the SDK raises at the end of a job, and the job's id."""
    submitted = client.messages.create(**asked, extra_headers=SUBMIT)
    return {"job": submitted.id, **error_of(client, asked, submitted.id)}


def error_of(client, asked, id):
    try:
        while True:
            client.messages.create(**asked, extra_headers=polls(id))
            time.sleep(PAUSE)
    except anthropic.APIStatusError as error:
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "type": error.body["error"]["type"],
            "request_id": error.request_id,
            "job_status": error.response.headers.get("x-bf-async-status"),
        }


def raw(client):
    """The statuses that the fields of raw answers tell, each once, in order."""
    create = client.messages.with_raw_response.create
    response = create(**MESSAGE, extra_headers=SUBMIT)
    id = response.headers["x-bf-async-id"]
    assert response.parse().id == id
    statuses = [response.headers["x-bf-async-status"]]
    while statuses[-1] != "completed":
        response = create(**MESSAGE, extra_headers=polls(id))
        if response.headers["x-bf-async-status"] != statuses[-1]:
            statuses.append(response.headers["x-bf-async-status"])
        assert response.headers["x-bf-async-id"] == id
        time.sleep(PAUSE)
    return {"statuses": statuses, "content": response.parse().to_dict(mode="json")["content"]}


async def async_main(base_url, key):
    async with anthropic.AsyncAnthropic(base_url=base_url, api_key=key) as client:
        jobs = [async_ended(client.messages.create, MESSAGE, "content") for _ in range(5)]
        result = {"messages": await asyncio.gather(*jobs)}
        if hasattr(client, "completions"):
            result["completion"] = await async_ended(client.completions.create, COMPLETION, "completion")
        return result


def main(base_url, key):
    # Its own retries stay, to see that it makes none in vain. Strict, it raises where a member is missing.
    with anthropic.Anthropic(base_url=base_url, api_key=key, _strict_response_validation=True) as client:
        result = {
            "without": client.messages.create(**MESSAGE).to_dict(mode="json"),
            "message": ended(client.messages.create, MESSAGE, "content"),
            "raw": raw(client),
            "errors": {name: raised(client, asked) for name, asked in BAD.items()},
            "unknown": error_of(client, MESSAGE, "job_" + "0" * 32),
        }
        if hasattr(client, "completions"):
            result["completion_without"] = client.completions.create(**COMPLETION).to_dict(mode="json")
            result["completion"] = ended(client.completions.create, COMPLETION, "completion")
    result["async"] = asyncio.run(async_main(base_url, key))
    print(json.dumps(result))


main(*sys.argv[1:])
