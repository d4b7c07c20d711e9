"""Gemini's files under their real SDK, sync and async; prints one JSON object. Arguments: BASE_URL KEY."""

import asyncio
import io
import json
import sys

from google import genai
from google.genai import errors, types

LARGE = b"0123456789abcdef" * (8 * 1024 * 1024 // 16) + b"and 5"
"""More than the 8 MiB that the SDK sends at once."""


def plain(file):
    return file.model_dump(mode="json", exclude_none=True, exclude={"sdk_http_response"})


def sync_calls(files):
    small = files.upload(file=io.BytesIO("grüß dich".encode()), config={"mime_type": "text/plain"})
    named = {"mime_type": "audio/mp3", "display_name": "große Datei"}
    large = files.upload(file=io.BytesIO(LARGE), config=named)
    seen = {
        "uploads": [plain(small), plain(large)],
        "list": [plain(file) for file in files.list()],
        "get": plain(files.get(name=large.name)),
    }
    files.delete(name=small.name)
    try:
        files.get(name=small.name)
    except errors.APIError as error:
        seen["deleted"] = {"class": type(error).__name__, "code": error.code, "status": error.status}
    return seen


async def async_calls(client):
    async with client.aio as aclient:
        uploaded = await aclient.files.upload(file=io.BytesIO(b"async"), config={"mime_type": "text/plain"})
        return {"upload": plain(uploaded), "get": plain(await aclient.files.get(name=uploaded.name))}


def main(base_url, key):
    options = types.HttpOptions(base_url=base_url, api_version="v1beta")
    with genai.Client(api_key=key, http_options=options) as client:
        seen = sync_calls(client.files)
    again = genai.Client(api_key=key, http_options=options)
    print(json.dumps({"sync": seen, "async": asyncio.run(async_calls(again))}))


main(*sys.argv[1:])
