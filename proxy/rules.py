"""Rules: what a config means for a request.

Facts
  - A request keeps the rules that it began with; a reload makes new ones.

Not here: how a plan is made (`plan`), what a holder may do (`quota`), who goes by it (`attempt`).
"""

from __future__ import annotations

import random

from . import plan, quota, readings
from .access import Holder
from .attempt import Runner
from .config import Config, Provider
from .errors import ProxyError, Source
from .exchange import Exchange
from .ledger import Ledger
from .original import Original
from .plan import Plan, Planner, Target
from .quota import Quota
from .routes import Kind, Route
from .signing import Signer
from .upstream import Upstream


class Rules:
    """A config, and what acts by it."""

    def __init__(self, config: Config, upstream: Upstream, ledger: Ledger | None, rng: random.Random) -> None:
        self.config = config
        self.runner = Runner(config, upstream, rng, signer(config))
        self.quota = Quota(config, ledger)
        self._planner = Planner(config)

    async def choose(
        self,
        original: Original,
        holder: Holder | None,
        route: Route,
        exchange: Exchange,
        *,
        later: bool = False,
    ) -> Plan:
        """The targets for a request; `later`: it is none yet, so it is not counted.

        Raises `ProxyError`: 400 and 415 of the plan, 402, 403, 429 and 503 of the holder's limits.
        """
        outgoing = original.outgoing
        chosen = self._plan(original, route)
        if not original.plain and any(original.rewritten(target.model) for target in chosen.targets):
            raise _bad(
                415, "A compressed body cannot be rewritten, as this plan needs; send it uncompressed."
            )
        if outgoing.is_signed:
            chosen = _without_signature(chosen, direct=outgoing.has_credential)
        if outgoing.key_name is not None:
            chosen = plan.pinned(chosen, outgoing.key_name.decode("latin-1"))
        if holder is not None and original.scan is not None and original.scan.native_fallbacks:
            chosen = quota.without_native_fallbacks(holder, chosen)
        if holder is not None and later:
            chosen = self.quota.permit(holder, chosen, route, exchange)
        elif holder is not None:
            chosen = await self.quota.admit(holder, chosen, route, exchange)
            # In a compressed answer no usage can be seen.
            original.identity = original.identity or holder.metered
        exchange.attempts.extend(chosen.skipped)
        return chosen

    def at(
        self, provider: str, original: Original, holder: Holder | None, route: Route, exchange: Exchange
    ) -> Plan:
        """The plan for what is asked of one provider for the proxy's own sake; it is not counted.

        Raises `ProxyError` 400, 403.
        """
        chosen = self._planner.at(original.format.name, provider)
        return self.quota.permit(holder, chosen, route, exchange) if holder is not None else chosen

    async def count(self, provider: Provider | None, holder: Holder, exchange: Exchange) -> None:
        """Count one request that goes to several providers, this one among them. Raises as `choose`."""
        if exchange.route is None or provider is None:
            self.quota.check(holder)
        else:
            chosen = self._planner.at(next(iter(provider.base_urls)), provider.name)
            await self.quota.admit(holder, chosen, exchange.route, exchange)

    def _plan(self, original: Original, route: Route) -> Plan:
        wire_format = original.format.name
        if route.kind is Kind.MODEL:
            for name in original.fallbacks if original.span[1] else ():
                if name not in self.config.models and not readings.is_plain(
                    name.encode("utf-8", "surrogatepass")
                ):
                    raise _bad(
                        400,
                        "A fallback for a model in the path has letters, digits and . _ - : / @ + = , ~ ( )"
                        " only, and no resource's name before a slash.",
                    )
            if original.fallbacks and not original.model:
                # No model stands there for another to replace: a fallback would get what the provider
                # chooses, under the name of what was asked for.
                raise _bad(400, "Fallbacks need a `model` whose place they can take; name one.")
            return self._planner.plan(wire_format, original.model, original.fallbacks)
        if original.outgoing.provider is not None:
            return self._planner.at(wire_format, original.outgoing.provider.decode("latin-1"))
        provider, slash, model = original.model.partition("/")
        if slash and provider in self.config.providers:
            original.path = original.target_path(model)
            return self._planner.at(wire_format, provider)
        return self._planner.plan(wire_format, "", ())


def signer(config: Config) -> Signer | None:
    """What signs requests, where a key has to. Raises RuntimeError when its package is missing."""
    keys = (key for provider in config.providers.values() for key in provider.keys)
    return Signer() if any(key.signs for key in keys) else None


def _without_signature(chosen: Plan, *, direct: bool) -> Plan:
    """The plan without the targets that need credentials of the client, which has sent a signature."""

    def judge(target: Target) -> Target | str:
        return "no_key" if target.may_show_credentials and not target.keys and not direct else target

    narrowed = chosen.narrowed(judge)
    if not narrowed.targets:
        raise _bad(
            401,
            "A request's signature cannot survive a proxy. Give the provider credentials in the proxy's"
            " config (bedrock_key_config), or send a bearer key.",
        )
    return narrowed


def _bad(status: int, message: str) -> ProxyError:
    return ProxyError(status, message, source=Source.DOWNSTREAM)
