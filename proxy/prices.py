"""Prices: what tokens cost, by model.

Facts
  - Providers state prices in US dollars per million tokens. A dollar for a million is a million pico-dollars
    for one, so a price with six decimals is a whole number of them.
  - Input that is read from a prompt cache is cheaper than other input. Input that is written to one is dearer
    at some providers, and dearer still where it stays for an hour (Anthropic, pricing page) or for twelve
    (OpenAI, pricing page).

Rules
  1. One table: the dataclasses here say what a price list holds, and how it is explained.
  2. What is left out is never free: it costs what input costs.
  3. Integers only; no sum is ever rounded.
  4. Clients choose the names that are looked up, so what is remembered of them has a bound.

Not here: how many tokens there were (`usage`), who pays (`quota`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from .limits import MOST_PER_REQUEST
from .schema import ConfigError, Document, Path, Problem, compose
from .shapes import mapping, optional, record, row, setting
from .values import glob

MAX_REMEMBERED = 1024
"""Names whose price is remembered."""

MAX_NAME = 256
"""The longest name that is remembered, in characters; a client may send one of megabytes."""


def price(document: Document, node: yaml.Node, path: Path) -> Any:
    """US dollars per million tokens, as whole pico-dollars per token: exact, so no float."""
    text = node.value if isinstance(node, yaml.ScalarNode) and node.style is None else ""
    if not re.fullmatch("(0|[1-9][0-9]{0,5})([.][0-9]{1,6})?", text):
        wanted = "wanted dollars per million tokens, below 1000000, in plain decimal digits"
        return document.problem(path, f"{wanted}, at most 6 of them after the point")
    whole, _, fraction = text.partition(".")
    return int(whole) * 10**6 + int(fraction.ljust(6, "0"))


class Price(NamedTuple):
    """What one token of each kind costs, in pico-dollars."""

    input: int
    output: int
    cache_read: int
    cache_write: int
    cache_write_1h: int


@dataclass(frozen=True, slots=True)
class Listed:
    """A price as it is written down."""

    input: int = field(
        metadata=row(price, "US dollars per million tokens of input for which no cache was used.")
    )
    output: int = field(
        metadata=row(price, "US dollars per million tokens of output, those of thinking included.")
    )
    cache_read: int | None = setting(
        None,
        optional(price),
        "US dollars per million tokens of input read from a prompt cache. null: as input; never free.",
    )
    cache_write: int | None = setting(
        None,
        optional(price),
        "US dollars per million tokens of input written to a prompt cache. null: as input; never free.",
    )
    cache_write_1h: int | None = setting(
        None,
        optional(price),
        "The same where the cache keeps them longer: for an hour at Anthropic, for twelve at OpenAI.",
    )

    @property
    def price(self) -> Price:
        caches = (self.cache_read, self.cache_write, self.cache_write_1h)
        return Price(self.input, self.output, *(self.input if each is None else each for each in caches))


@dataclass(frozen=True, slots=True)
class PriceList:
    """A file of prices."""

    default: Listed = field(metadata=row(record(Listed), "The price of models that are not in the list."))
    models: Mapping[str, Listed] = setting(
        MappingProxyType({}),
        mapping(str, record(Listed)),
        "Prices by MODEL or PROVIDER/MODEL, where * stands for any text.",
    )


class Prices:
    """Prices by model. Two are equal when they say the same."""

    __slots__ = ("_default", "_known", "_models", "_patterns")

    def __init__(self, default: Price, models: Mapping[str, Price]) -> None:
        self._default = default
        self._models = dict(models)
        globs = [name for name in models if "*" in name]
        globs.sort(key=lambda name: (-len(name), "/" not in name))
        self._patterns = [(glob(name), "/" in name, models[name]) for name in globs]
        self._known: dict[str, tuple[Price, bool]] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prices) and (self._default, self._models) == (other._default, other._models)

    def __hash__(self) -> int:
        return hash(self._default)

    def of(self, provider: str, model: str) -> tuple[Price, bool]:
        """The price of a provider's model, and whether it is in the list; else it is the default.

        Names come before patterns, and of patterns the longest first. What has a provider comes before what
        has none.
        """
        name = f"{provider}/{model}"
        found = self._known.get(name)
        if found is None:
            found = self._find(name, model)
            if len(name) <= MAX_NAME:
                if len(self._known) == MAX_REMEMBERED:
                    self._known.clear()
                self._known[name] = found
        return found

    def _find(self, name: str, model: str) -> tuple[Price, bool]:
        for exact in (name, model):
            if exact in self._models:
                return self._models[exact], True
        for pattern, qualified, price in self._patterns:
            # A model's own name may have a slash: providers that resell others' models call them so.
            if pattern.match(model) or (qualified and pattern.match(name)):
                return price, True
        return self._default, False


def load(text: str) -> Prices:
    """The prices that a YAML text lists. Raises `ConfigError` with every problem at once."""
    root = compose(text)
    if root is None:
        raise ConfigError([Problem("", 1, "the file is empty")])
    document = Document({}, _no_files)
    listed = document.read(record(PriceList), root, ())
    if document.problems:
        raise ConfigError(document.problems)
    return Prices(listed.default.price, {name: each.price for name, each in listed.models.items()})


def _no_files(name: str) -> str:
    raise OSError(name)


def cost(price: Price, tokens: Mapping[str, int]) -> int:
    """What tokens, by Anthropic's field names, cost in pico-dollars; at most `limits.MOST_PER_REQUEST`."""
    long_written = tokens.get("ephemeral_1h_input_tokens", 0)
    # They are a part of the others, so fewer of those are a contradiction; none of them is free for it.
    written = max(tokens.get("cache_creation_input_tokens", 0), long_written)
    pico = (
        tokens.get("input_tokens", 0) * price.input
        + tokens.get("output_tokens", 0) * price.output
        + tokens.get("cache_read_input_tokens", 0) * price.cache_read
        + (written - long_written) * price.cache_write
        + long_written * price.cache_write_1h
    )
    return min(pico, MOST_PER_REQUEST)
