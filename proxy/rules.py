"""Rules: what a config means for a request.

Facts
  - A request keeps the rules that it began with; a reload makes new ones.

Not here: how a plan is made (`plan`), what a holder may do (`quota`), who goes by it (`attempt`).
"""

from __future__ import annotations

import random

from . import plan
from .access import Holder
from .attempt import Runner
from .config import Config
from .exchange import Exchange
from .incoming import Original
from .ledger import Ledger
from .plan import Plan, Planner
from .quota import Quota
from .routes import Route
from .upstream import Upstream


class Rules:
    """A config, and what acts by it."""

    def __init__(self, config: Config, upstream: Upstream, ledger: Ledger | None, rng: random.Random) -> None:
        self.config = config
        self.runner = Runner(config, upstream, rng)
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
        chosen = self._planner.plan(original.wire_format, original.scan, plain=original.plain)
        outgoing = original.outgoing
        if outgoing.key_name is not None:
            chosen = plan.pinned(chosen, outgoing.key_name.decode("latin-1"))
        if holder is not None and later:
            chosen = self.quota.permit(holder, chosen, route, exchange)
        elif holder is not None:
            chosen = await self.quota.admit(holder, chosen, route, exchange)
            # In a compressed answer no usage can be seen.
            original.identity = original.identity or holder.metered
        exchange.attempts.extend(chosen.skipped)
        return chosen
