"""Models, batches, files, skills, a session's GET stream; prints one JSON object. Arguments: BASE_URL KEY."""

import asyncio
import json
import sys

import anthropic

CONTENT = bytes(range(256)) * 2000
PARAMS = {"model": "claude-2", "max_tokens": 64, "messages": [{"role": "user", "content": "In a batch"}]}
REQUESTS = [{"custom_id": "one", "params": PARAMS}, {"custom_id": "two", "params": PARAMS}]


def outcomes(results):
    return [[line.custom_id, line.result.type, line.result.message.content[0].text] for line in results]


def batches(client):
    api = client.messages.batches
    created = api.create(requests=REQUESTS)
    ended = api.retrieve(created.id)
    other = api.create(requests=REQUESTS[:1])
    canceled = api.cancel(other.id)
    listed = list(api.list())
    return {
        "created": [created.processing_status, created.results_url],
        "ended": [ended.processing_status, ended.request_counts.succeeded],
        "canceled": canceled.processing_status,
        "results_urls": [ended.results_url, *(batch.results_url for batch in listed)],
        "results": outcomes(api.results(created.id)),
        "deleted": api.delete(created.id).id == created.id,
    }


def files(client):
    uploaded = client.files.upload(file=("grüße.bin", CONTENT, "application/x-verbatim"))
    downloaded = client.files.download(uploaded.id)
    return {
        "uploaded": [uploaded.filename, uploaded.mime_type, uploaded.size_bytes],
        "listed": [file.id == uploaded.id for file in client.files.list()],
        "metadata": client.files.retrieve_metadata(uploaded.id).size_bytes,
        "same": downloaded.read() == CONTENT,
        "type": downloaded.headers["content-type"],
        "deleted": client.files.delete(uploaded.id).id == uploaded.id,
    }


async def async_main(base_url, key):
    async with anthropic.AsyncAnthropic(base_url=base_url, api_key=key, max_retries=0) as client:
        uploaded = await client.files.upload(file=("a.bin", CONTENT, "application/x-verbatim"))
        downloaded = await client.files.download(uploaded.id)
        batch = await client.messages.batches.create(requests=REQUESTS)
        await client.messages.batches.retrieve(batch.id)
        results = [line async for line in await client.messages.batches.results(batch.id)]
        return {"same": await downloaded.read() == CONTENT, "results": outcomes(results)}


def main(base_url, key):
    with anthropic.Anthropic(base_url=base_url, api_key=key, max_retries=0) as client:
        result = {
            "models": [model.id for model in client.models.list()],
            "model": client.models.retrieve("claude-2").display_name,
            "batches": batches(client),
            "files": files(client),
            "skills": [skill.id for skill in client.skills.list()],
            "session": [event.to_dict(mode="json") for event in client.beta.sessions.events.stream("sesn_1")],
            "async": asyncio.run(async_main(base_url, key)),
        }
    print(json.dumps(result))


main(*sys.argv[1:])
