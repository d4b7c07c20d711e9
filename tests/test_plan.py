"""Plans: which targets, in which order, and why not."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from proxy import config, keys, plan
from proxy.body import scan
from proxy.errors import ProxyError

CONFIG = config.load(
    """
providers:
  anthropic: {base_urls: {anthropic: "http://127.0.0.1:1"}}
  keyed:
    base_urls: {anthropic: "http://127.0.0.1:2"}
    keys: [{name: k, value: env.KEY, models: ["claude-*"]}]
  bare: {base_urls: {anthropic: "http://127.0.0.1:3"}}
  local: {base_urls: {anthropic: "http://127.0.0.1:4"}, is_key_less: true}
  other: {base_urls: {openai: "http://127.0.0.1:5"}, is_key_less: true}
default_providers: {anthropic: anthropic}
models: {fast: [keyed/claude-haiku, local/haiku]}
""",
    {"KEY": "sk-test-1"},
    lambda path: "",
)


def built(body: str) -> plan.Plan:
    found = scan(body.encode())
    return plan.Planner(CONFIG).plan("anthropic", found.model, found.fallbacks)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ('{"model":"claude-3"}', ["anthropic/claude-3"]),
        ('{"model":"keyed/claude-3"}', ["keyed/claude-3"]),
        ('{"model":"meta-llama/Llama-3"}', ["anthropic/meta-llama/Llama-3"]),
        ('{"model":"local/meta-llama/Llama-3"}', ["local/meta-llama/Llama-3"]),
        ('{"model":"fast"}', ["keyed/claude-haiku", "local/haiku"]),
        ('{"model":"fast","fallbacks":["local/x"]}', ["keyed/claude-haiku", "local/haiku", "local/x"]),
        ('{"model":"x","fallbacks":["fast"]}', ["anthropic/x", "keyed/claude-haiku", "local/haiku"]),
        ('{"model":"keyed/"}', ["anthropic/keyed/"]),
    ],
)
def test_targets_in_order(body: str, names: list[str]) -> None:
    """A prefix only where a provider is configured; aliases first, then the request's own fallbacks."""
    targets = built(body).targets
    assert [target.name for target in targets] == names
    assert [target.index for target in targets] == list(range(len(names)))


def test_unusable_targets_are_skipped_with_their_reason() -> None:
    """No wire format, no key, no key for this model; the places in the plan stay."""
    chosen = built('{"model":"other/x","fallbacks":["bare/x","keyed/gpt","local/x"]}')
    assert [(target.name, target.index) for target in chosen.targets] == [("local/x", 3)]
    assert chosen.skipped == (
        ("other/x", "no_wire_format"),
        ("bare/x", "no_key"),
        ("keyed/gpt", "model_not_allowed"),
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"model":"x","fallbacks":["claude-3"]}', "'claude-3' names no configured provider"),
        ('{"model":"x","fallbacks":["keyd/claude-3"]}', "Did you mean keyed/claude-3?"),
        ('{"model":"x","fallbacks":["local/"]}', "names no configured provider"),
        ('{"model":"bare/x"}', "no keys of its own"),
        ('{"model":"other/x"}', "does not speak this wire format"),
        ('{"model":"x","fallbacks":[' + ",".join(['"local/x"'] * 32) + "]}", "at most 32"),
    ],
)
def test_a_plan_that_cannot_be_is_a_400(body: str, words: str) -> None:
    """The message says what, and what to do."""
    with pytest.raises(ProxyError, match=words.replace("?", r"\?")) as caught:
        built(body)
    assert caught.value.status == 400


def test_keys_are_drawn_by_weight() -> None:
    """Over many draws each key comes first about as often as its weight says; weight 0 comes last."""
    secret = config.Secret("sk-test-1")
    pool = [config.Key("a", secret, 3), config.Key("b", secret, 1), config.Key("c", secret, 0)]
    rng = random.Random(7)
    draws = [[key.name for key in keys.draw(pool, rng)] for _ in range(4000)]
    first = Counter(draw[0] for draw in draws)
    assert 2800 < first["a"] < 3200
    assert first["a"] + first["b"] == 4000
    assert all(draw[2] == "c" for draw in draws)
