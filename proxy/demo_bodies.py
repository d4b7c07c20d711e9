"""Reads the bodies that are sent to the demo's upstream, and refuses what cannot be read.

Facts
  - ``web.BaseRequest.read`` stops at 1 MiB; providers take more (Anthropic: 32 MB), so the body is read here.
"""

from __future__ import annotations

import orjson
from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError

from .demo_answers import DATE, Json, Refusal, invalid

MAX_BODY = 32 * 1024 * 1024


async def read_json(request: web.BaseRequest) -> Json:
    """The JSON object that the body is."""
    data = bytearray()
    try:
        async for chunk in request.content.iter_any():
            data += chunk
            if len(data) > MAX_BODY:
                raise Refusal(
                    413, "request_too_large", "Request exceeds the maximum allowed number of bytes."
                )
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise invalid(f"The request body is not valid JSON: {error}") from error
    except web.RequestPayloadError as error:
        raise invalid("The request body could not be decoded") from error
    if type(body) is not dict:
        raise invalid("Input should be a valid dictionary")
    return body


async def read_upload(request: web.BaseRequest, file_id: str) -> tuple[Json, bytes]:
    """The part named ``file``. All parts are read: only the last boundary tells that nothing is missing."""
    if request.content_type != "multipart/form-data":
        raise invalid("content-type: should be multipart/form-data")
    upload = None
    try:
        async for part in await request.multipart():
            if isinstance(part, BodyPartReader) and part.name == "file":
                upload = await _read_part(part, file_id)
    except (ValueError, HttpProcessingError, web.RequestPayloadError) as error:
        raise invalid("The multipart body could not be read") from error
    if upload is None:
        raise invalid("file: Field required")
    return upload


async def _read_part(part: BodyPartReader, file_id: str) -> tuple[Json, bytes]:
    content = bytearray()
    while chunk := await part.read_chunk():
        content += chunk
        if len(content) > MAX_BODY:
            raise Refusal(413, "request_too_large", "The file is too large")
    metadata = {
        "id": file_id,
        "type": "file",
        "filename": part.filename or "unnamed",
        "mime_type": part.headers.get("Content-Type", "application/octet-stream"),
        "size_bytes": len(content),
        "created_at": DATE,
        "downloadable": True,
    }
    return metadata, bytes(content)
