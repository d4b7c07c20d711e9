"""Azure's OpenAI: OpenAI's bytes at other paths, with the key in ``api-key``.

Facts
  - A base URL is a resource, ``https://NAME.openai.azure.com``; the SDK puts ``/openai`` behind it.
  - A deployment stands in the path, ``/openai/deployments/{deployment}/chat/completions?api-version=…``, and
    the SDK leaves ``model`` in the body as it is, where it names the same (openai-python, ``lib/azure.py``).
  - ``extensions/chat/completions`` is one of a deployment's own (Azure OpenAI On Your Data, REST reference).
  - Other paths, those of the v1 API, ``/openai/v1/…``, too, have it in the body (Microsoft Learn, API
    versions).
"""

from __future__ import annotations

import dataclasses
import re
from types import MappingProxyType

from .format import Listing, Method, Place
from .openai import FREE, LASTING, MEDIA_IN, MEDIA_OUT, OPENAI, PATHS

_METHODS = {
    path[1:]: Method(path[1:].decode(), place=Place.FORM if place is Place.FORM else Place.PATH)
    for path, place in (*PATHS.items(), (b"/extensions/chat/completions", Place.PATH))
}


def _operations(*paths: str) -> frozenset[str]:
    begins = ("/openai", "/openai/v1", "/openai/deployments/{model}")
    return frozenset(f"/azure{begin}{path}" for begin in begins for path in paths)


AZURE = dataclasses.replace(
    OPENAI,
    name="azure",
    # The SDK puts /openai behind what it is given; and so may who has given it that.
    roots=((b"/openai/deployments/", b""), (b"/openai/openai/", b"/openai")),
    label="",
    paths=MappingProxyType(
        {begin + path: place for begin in (b"/openai", b"/openai/v1") for path, place in PATHS.items()}
    ),
    credential=(b"api-key", b""),
    model_path=re.compile(
        rb"/openai/deployments/(?P<model>.+?)/(?P<method>%b)" % b"|".join(map(re.escape, _METHODS)), re.I
    ),
    methods=MappingProxyType(_METHODS),
    model_path_label="/azure/openai/deployments/{model}/",
    body_model="",
    read_path=None,
    listing=Listing(b"/openai/v1/models", "data", "id"),
    lasting=re.compile(rb"/openai(/v1|/deployments/.+)?" + LASTING),
    free_paths=re.compile(rb"/openai(/v1)?" + FREE),
    free=_operations("/responses/input_tokens", "/moderations"),
    media_in=_operations(*MEDIA_IN),
    media_out=_operations(*MEDIA_OUT),
    pending=MappingProxyType({}),
)
