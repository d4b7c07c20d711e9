"""What a virtual key may not, and an upstream that is silent: what the official Anthropic SDK raises.

Not here: the other errors of ours (`test_sdk_anthropic`).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from environments import RunScript
from running import StartProxy, StartUpstream, keyed
from scripted import Conn, Request
from sdks import CURRENT, LAST_WITH_COMPLETIONS

ALICE, BOB = "sk-bf-sk-test-alice", "sk-bf-sk-test-bob"

TIMEOUT = {LAST_WITH_COMPLETIONS: "InternalServerError", CURRENT: "GatewayTimeoutError"}
"""By version: the class for a 504."""


async def silent(conn: Conn, _: Request) -> None:
    await conn.gone()


@pytest.mark.parametrize("version", [LAST_WITH_COMPLETIONS, CURRENT])
async def test_limits_and_silence(
    run_script: RunScript, upstream: StartUpstream, proxy: StartProxy, tmp_path: Path, version: str
) -> None:
    """A model that is not allowed, a limit that is reached, no head in time; JSON and stream, with our id."""
    up, quiet = await upstream(), await upstream(silent, silent, silent)
    grants = [{"provider": name, "allowed_models": ["claude-2"]} for name in ("anthropic", "silent")]
    spent = {"request_max_limit": 1, "request_reset_duration": "1Y"}
    p = await proxy(
        providers={"anthropic": keyed(up, "main"), "silent": keyed(quiet, "silent")},
        network={"first_byte_timeout": 0.3, "max_retries": 0},
        store=f"sqlite:{tmp_path / 'state.db'}",
        virtual_keys={
            "alice": {"value": "env.ALICE", "provider_configs": grants},
            "bob": {"value": "env.BOB", "provider_configs": grants, "rate_limit": spent},
        },
        environ={"ALICE": ALICE, "BOB": BOB},
    )
    url = f"http://127.0.0.1:{p.port}/anthropic"
    seen = await run_script((f"anthropic=={version}",), "sdk_limits", url, ALICE, BOB)
    wanted = [
        ["PermissionDeniedError", 403, "permission_error"],
        ["RateLimitError", 429, "rate_limit_error"],
        [TIMEOUT[version], 504, "timeout_error"],
    ]
    assert [[error[:3] for error in errors] for errors in seen] == [wanted, wanted]
    await p.stop()
    ours = {line["request_id"] for line in p.lines}
    assert {error[3] for errors in seen for error in errors} <= ours
