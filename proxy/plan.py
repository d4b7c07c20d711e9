"""Which targets a request may go to, in which order.

Facts
  - ``provider/model`` is split at the first slash, and only before a configured provider:
    ``meta-llama/Llama-3`` is one model name.
  - An alias of the config stands for an ordered list of targets.

Rules
  1. There is no translation: a target whose provider does not speak the wire format is skipped.
  2. A client's credentials go to the wire format's default provider and to nobody else. A target
     without keys of its own is skipped, unless its provider says that it wants none.
  3. A fallback that names no configured provider is an error: it is a typo that would show on the
     worst day.

Not here: when the next target is tried. `attempt` decides.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .config import Config, Key, Provider
from .errors import ProxyError, Source

MAX_TARGETS = 32
"""A longer plan is refused: every target may cost a paid request."""

MAX_REMEMBERED = 1024
"""Plans kept. Clients choose models, so there is a bound."""

MAX_REMEMBERED_NAMES = 1000
"""Characters of the names in a plan that is kept."""


@dataclass(frozen=True, slots=True)
class Target:
    """One provider and one model. `index` is the place in the plan, 0 for the primary."""

    index: int
    provider: Provider
    model: str
    keys: tuple[Key, ...]
    """The provider's keys that allow the model; empty when it has none."""
    is_default: bool
    direct: bool = False
    """Whether the client's own key may be used instead of ours."""

    @property
    def may_show_credentials(self) -> bool:
        """Whether the client's own credentials may go there."""
        provider = self.provider
        return self.is_default and not provider.is_key_less and (self.direct or not provider.keys)

    @property
    def name(self) -> str:
        return f"{self.provider.name}/{self.model}" if self.model else self.provider.name


class Plan(NamedTuple):
    """The usable targets, never empty, and those passed over with the reason."""

    targets: tuple[Target, ...]
    skipped: tuple[tuple[str, str], ...]

    def narrowed(self, judge: Callable[[Target], Target | str]) -> Plan:
        """The plan with what `judge` makes of each target; one for which it has a reason is passed over.

        Its targets may be none.
        """
        judged = [(target, judge(target)) for target in self.targets]
        if all(result is target for target, result in judged):
            return self
        targets = tuple(result for _, result in judged if isinstance(result, Target))
        passed = tuple((target.name, result) for target, result in judged if isinstance(result, str))
        return Plan(targets, self.skipped + passed)


class Planner:
    """Makes plans. The same question has the same answer, so the last ones are remembered."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._build = functools.lru_cache(MAX_REMEMBERED)(functools.partial(build, config))

    def plan(self, wire_format: str, model: str, fallbacks: tuple[str, ...]) -> Plan:
        """The plan for a model, which may be none, and the fallbacks that the request asks for.

        Raises `ProxyError` 400 when a fallback is a typo or no target can be used.
        """
        named = len(model) + sum(map(len, fallbacks))
        ask = self._build if named <= MAX_REMEMBERED_NAMES else self._build.__wrapped__
        return ask(wire_format, model, fallbacks)

    def at(self, wire_format: str, provider: str) -> Plan:
        """The plan for a request that names no model, and asks for a provider. Raises `ProxyError` 400."""
        if provider not in self._config.providers:
            raise _bad(f"No provider is called {provider[:100]!r} (x-model-provider).")
        return self._build(wire_format, "", (), provider)


def pinned(plan: Plan, name: str) -> Plan:
    """The plan with no other provider key than the one of this name. Raises `ProxyError` 400."""

    def judge(target: Target) -> Target | str:
        keys = tuple(key for key in target.keys if key.name == name)
        return dataclasses.replace(target, keys=keys, direct=False) if keys else "no_such_key"

    narrowed = plan.narrowed(judge)
    if not narrowed.targets:
        raise _bad(f"No provider key that may serve this request is called {name[:100]!r} (x-bf-api-key).")
    return narrowed


def build(
    config: Config, wire_format: str, model: str, fallbacks: tuple[str, ...], provider: str | None = None
) -> Plan:
    """The plan for a model and the gateway's fallbacks; a bare model is that of `provider`, if given.

    Raises `ProxyError` 400.
    """
    default = config.default_providers.get(wire_format)
    named = [*_primary(config, provider or default, model), *_fallbacks(config, fallbacks)]
    if len(named) > MAX_TARGETS:
        raise _bad(
            f"The plan has {len(named)} targets; at most {MAX_TARGETS} are allowed. Shorten `fallbacks`."
        )
    targets = []
    skipped = []
    for index, (named_provider, name) in enumerate(named):
        keys = tuple(key for key in named_provider.keys if not name or key.allows(name))
        is_default = named_provider.name == default
        direct = is_default and config.allow_direct_keys
        target = Target(index, named_provider, name, keys, is_default, direct)
        reason = _unusable(target, wire_format)
        if reason:
            skipped.append((target.name, reason))
        else:
            targets.append(target)
    if not targets:
        why = "; ".join(f"{name}: {_REASONS[reason]}" for name, reason in skipped)
        why = why or f"no default provider is configured for {wire_format}; name one in default_providers"
        raise _bad(f"No target can serve this request ({why}).")
    return Plan(tuple(targets), tuple(skipped))


_REASONS = {
    "no_wire_format": "the provider does not speak this wire format",
    "no_key": "the provider has no keys of its own, and a client's key is shown to the default provider only",
    "model_not_allowed": "none of the provider's keys allows this model",
}


def _unusable(target: Target, wire_format: str) -> str:
    provider = target.provider
    if wire_format not in provider.base_urls:
        return "no_wire_format"
    if provider.keys:
        return "" if target.keys else "model_not_allowed"
    return "" if target.is_default or provider.is_key_less else "no_key"


def _primary(config: Config, default: str | None, model: str) -> Iterator[tuple[Provider, str]]:
    if model in config.models:
        yield from (_split(config, target) for target in config.models[model])
        return
    provider, _, name = model.partition("/")
    if provider in config.providers and name:
        yield config.providers[provider], name
    elif default is not None:
        yield config.providers[default], model


def _fallbacks(config: Config, fallbacks: Iterable[str]) -> Iterator[tuple[Provider, str]]:
    for fallback in fallbacks:
        if fallback in config.models:
            yield from (_split(config, target) for target in config.models[fallback])
            continue
        provider, _, name = fallback.partition("/")
        if provider not in config.providers or not name:
            near = difflib.get_close_matches(provider, config.providers, n=1)
            hint = f" Did you mean {near[0]}/{name or 'MODEL'}?" if near else ""
            raise _bad(
                f"The fallback {fallback[:100]!r} names no configured provider; write provider/model.{hint}"
            )
        yield config.providers[provider], name


def _split(config: Config, target: str) -> tuple[Provider, str]:
    provider, _, model = target.partition("/")
    return config.providers[provider], model


def _bad(message: str) -> ProxyError:
    return ProxyError(400, message, source=Source.DOWNSTREAM)
