"""boto3, Bedrock upstreams for it, and how the proxy is told of them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from bedrock_signatures import Credentials
from bedrock_upstream import OURS, THEIRS, BedrockUpstream
from environments import RunScript
from running import Proxy

BOTO3 = ("boto3==1.44.5",)
ANTHROPIC = ("anthropic==2.12.0", "boto3==1.44.5")

MODEL = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
ARN = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-haiku-4-5-20251001-v1:0"
ON_THE_WIRE = b"us.anthropic.claude-haiku-4-5-20251001-v1%3A0"

VARIABLES = {
    "AWS_ACCESS_KEY_ID": THEIRS.access_key,
    "AWS_SECRET_ACCESS_KEY": THEIRS.secret_key,
    "AWS_SESSION_TOKEN": str(THEIRS.token),
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
}
"""What clients sign with."""

Step = tuple[str, str, str, Mapping[str, str]]
"""Base URL, what is done (a function of ``sdk/bedrock_calls.py``), model, headers."""

Boto = Callable[[Mapping[str, Step]], Awaitable[dict[str, Any]]]


@pytest.fixture
def boto(run_script: RunScript) -> Boto:
    """Takes all steps in one process of boto3, and returns what each has seen."""

    async def run(steps: Mapping[str, Step]) -> dict[str, Any]:
        return dict(await run_script(BOTO3, "bedrock_calls", json.dumps(steps), **VARIABLES))

    return run


def provider(
    upstream: BedrockUpstream | str, credentials: Credentials = OURS, region: str = "", **more: Any
) -> dict[str, Any]:
    """A provider of Bedrock's format and of Anthropic's, whose requests are signed with `credentials`."""
    name = variable(credentials)
    config = {"access_key": f"env.{name}_ACCESS", "secret_key": f"env.{name}_SECRET"}
    if credentials.token:
        config["session_token"] = f"env.{name}_TOKEN"
    url = upstream if isinstance(upstream, str) else upstream.url
    config["region"] = region or ("us-east-1" if isinstance(upstream, str) else upstream.region)
    return {
        "base_urls": {"bedrock": url, "anthropic": f"{url}/anthropic"},
        "keys": [{"name": "main", "bedrock_key_config": config}],
        "network_config": {"max_retries": 0},
        **more,
    }


def environ(*everybody: Credentials) -> dict[str, str]:
    """The variables that these providers name."""
    found = {}
    for credentials in everybody or (OURS,):
        name = variable(credentials)
        found |= {f"{name}_ACCESS": credentials.access_key, f"{name}_SECRET": credentials.secret_key}
        if credentials.token:
            found[f"{name}_TOKEN"] = credentials.token
    return found


def variable(credentials: Credentials) -> str:
    return credentials.access_key.upper().replace("-", "_")


def base_url(proxy: Proxy) -> str:
    return f"http://127.0.0.1:{proxy.port}/bedrock"
