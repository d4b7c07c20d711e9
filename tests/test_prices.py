"""The price list: how it is read, which price a model gets, what tokens cost, and the shipped one."""

from __future__ import annotations

import dataclasses
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import prices
from proxy.limits import MOST_PER_REQUEST, dollars
from proxy.prices import Listed, Price, PriceList, Prices, cost
from proxy.schema import ConfigError

SHIPPED = Path(__file__).parent.parent / "conf" / "prices.yaml"
DEFAULT = "default: {input: 10, output: 50}\n"
HAIKU = Price(1_000_000, 5_000_000, 100_000, 1_250_000, 2_000_000)


def listed(*models: str) -> Prices:
    """A list in which the input price of a model is its place in the list, from 1."""
    rows = "".join(f'  "{name}": {{input: {place}, output: 0}}\n' for place, name in enumerate(models, 1))
    return prices.load(DEFAULT + "models:\n" + rows)


def place(of: Prices, name: str) -> int:
    """The place of the row that `name`, as provider/model, gets its price from; 0 is the default."""
    price, known = of.of(*name.split("/", 1))
    assert known == (price.output == 0)
    return price.input // 10**6 if known else 0


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        prices.load(text)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "pico"),
    [
        ("0", 0),
        ("0.0", 0),
        ("3", 3_000_000),
        ("3.00", 3_000_000),
        ("0.0375", 37_500),
        ("0.000001", 1),
        ("18.75", 18_750_000),
        ("999999.999999", 999_999_999_999),
    ],
)
def test_a_price_is_whole_pico_dollars_for_a_token(text: str, pico: int) -> None:
    """Dollars per million tokens, with up to six decimals, become an integer per token, without rounding."""
    price, _ = prices.load(f"default: {{input: {text}, output: 0}}").of("p", "m")
    assert price.input == pico


@pytest.mark.parametrize(
    "text",
    [
        *("-1", "+1", ".5", "5.", "1e3", "0.0000001", "1000000", "1_000", "010", "0x1", "1:30", "٣"),
        *("~", "true", '"3"', "{}", "[]", "$3", "3 USD", ".inf", "NaN", "sk-test-in-the-wrong-place"),
    ],
)
def test_what_is_no_plain_decimal_is_no_price(text: str) -> None:
    """Anything else is a problem with its line, and its text is not repeated."""
    (message,) = problems(f"default:\n  output: 1\n  input: {text}\n")
    wanted = "wanted dollars per million tokens, below 1000000, in plain decimal digits"
    assert message == f"line 3: default.input: {wanted}, at most 6 of them after the point"


def test_every_problem_is_named_with_its_line() -> None:
    """One run shows all that is wrong, in the order of the lines."""
    text = "default:\n  input: 1\nmodels:\n  m: {input: x, output: 1, cached: 2}\n  m: {}\nmodel: {}\n"
    assert problems(text) == [
        "line 2: default.output: is missing, and there is no default",
        "line 4: models.m.input: wanted dollars per million tokens, below 1000000, in plain decimal digits, "
        "at most 6 of them after the point",
        'line 4: models.m.cached: unknown key; did you mean "cache_read"?',
        "line 5: models.m: repeated key, first in line 4",
        'line 6: model: unknown key; did you mean "models"?',
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the file is empty"),
        ("# nothing\n", "line 1: the file is empty"),
        ("models: {}", "line 1: default: is missing, and there is no default"),
        ("[]", "line 1: wanted a mapping, found a list"),
        ("default: {input: 1, output: 1}\nmodels:\n", "line 2: models: wanted a mapping, found no value"),
        ("default: {input: 1, output: 1", "line 1: not valid YAML"),
        ("default: !!python/name:os.system {}", "line 1: tags (!…) are not supported; write the plain value"),
    ],
)
def test_a_text_that_is_no_list(text: str, message: str) -> None:
    """A file that is empty, lacks the default, or is something else is a problem, not an exception."""
    (first, *_) = problems(text)
    assert first.startswith(message)


def test_a_cache_price_that_is_left_out_is_the_price_of_input() -> None:
    """A missing price of caches, and null, mean what input costs; 0 means free."""
    text = DEFAULT + "models:\n  a: {input: 3, output: 15}\n  b: {input: 3, output: 15, cache_read: null}\n"
    both = prices.load(text + "  c: {input: 3, output: 15, cache_write: 0}\n")
    assert both.of("p", "a") == (Price(3_000_000, 15_000_000, 3_000_000, 3_000_000, 3_000_000), True)
    assert both.of("p", "b") == both.of("p", "a")
    assert both.of("p", "c")[0].cache_write == 0


def test_an_unknown_model_has_the_default_price() -> None:
    """The default is the price of what is in no row, and it is said that it is."""
    assert prices.load(DEFAULT).of("anthropic", "claude-9") == (
        Price(10_000_000, 50_000_000, 10_000_000, 10_000_000, 10_000_000),
        False,
    )


@pytest.mark.parametrize(
    ("models", "name", "expected"),
    [
        (["m", "p/m"], "p/m", 2),
        (["m", "p/m"], "q/m", 1),
        (["p/m*", "m*", "m"], "p/m", 3),
        (["m*", "mo*", "mod*"], "p/model", 3),
        (["m*", "p/*"], "p/model", 2),
        (["m??*", "p/m*"], "p/model", 2),
        (["*", "p/*"], "q/model", 1),
        (["model*", "p/mod*"], "p/model", 2),
        (["model-1*", "p/model*"], "p/model-1", 2),
        (["model-1-*", "p/model*"], "p/model-1-2", 1),
        (["haiku*", "*haiku*"], "haiku/gpt", 0),
        (["*/gpt"], "haiku/gpt", 1),
        (["anthropic/claude*"], "router/anthropic/claude-2", 1),
        (["anthropic/claude-2"], "router/anthropic/claude-2", 1),
        (["router/anthropic/*", "anthropic/claude-2"], "router/anthropic/claude-2", 2),
        (["claude-2"], "p/claude-2.1", 0),
        (["claude-2"], "p/Claude-2", 0),
        (["claude-?*"], "p/claude-2", 0),
        (["claude-[0-9]*"], "p/claude-2", 0),
        (["claude-4[1m]*"], "p/claude-4[1m]", 1),
        (["a.c*"], "p/abc", 0),
        (["a*"], "p/a\nb", 1),
        (["a*"], "p/ba", 0),
        (["a*z"], "p/a*z", 1),
        (["a*z"], "p/az\n", 0),
    ],
)
def test_the_most_exact_row_wins(models: list[str], name: str, expected: int) -> None:
    """A name with the provider, then without, then patterns, the longest first; only * is special."""
    assert place(listed(*models), name) == expected
    assert place(listed(*reversed(models)), name) == (len(models) + 1 - expected if expected else 0)


def test_what_was_looked_up_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is looked for once, and what is remembered is what was found."""
    both = listed("a*", "p/a*")
    asked = ["p/ab", "q/ab", "p/ab", "q/ab", "q/b", "q/b"]
    assert [place(both, name) for name in asked] == [2, 1, 2, 1, 0, 0]
    monkeypatch.delattr(Prices, "_find")
    assert [place(both, name) for name in asked] == [2, 1, 2, 1, 0, 0]


def test_what_is_remembered_of_clients_names_is_bounded() -> None:
    """Neither many names nor long ones fill the memory, and they get their prices all the same."""
    some = listed("a*")
    for number in range(5 * prices.MAX_REMEMBERED):
        assert place(some, f"p/a{number}") == 1
        assert len(some._known) <= prices.MAX_REMEMBERED
    before = len(some._known)
    assert place(some, "p/a" + "x" * prices.MAX_NAME) == 1
    assert place(some, "p/b" + "x" * 10**6) == 0
    assert len(some._known) == before
    assert max(map(len, some._known)) <= prices.MAX_NAME


@pytest.mark.timeout(60)
def test_no_name_makes_a_pattern_slow() -> None:
    """A pattern with many stars does not try them in all combinations, which would never end here."""
    assert place(listed("*a" * 20 + "*b"), "p/" + "a" * 100_000) == 0


def test_equal_lists_are_equal() -> None:
    """Two configs that say the same are equal, whatever was looked up in them."""
    one, two = listed("a", "b*"), listed("a", "b*")
    one.of("p", "b1")
    assert one == two
    assert hash(one) == hash(two)
    assert one != listed("a", "c*")
    assert prices.load(DEFAULT) != prices.load(DEFAULT.replace("50", "51"))
    assert one != "prices"


@pytest.mark.parametrize(
    ("tokens", "pico"),
    [
        ({}, 0),
        ({"input_tokens": 1}, 1_000_000),
        ({"output_tokens": 1}, 5_000_000),
        ({"cache_read_input_tokens": 1}, 100_000),
        ({"cache_creation_input_tokens": 1}, 1_250_000),
        ({"cache_creation_input_tokens": 3, "ephemeral_1h_input_tokens": 1}, 2 * 1_250_000 + 2_000_000),
        ({"cache_creation_input_tokens": 3, "ephemeral_1h_input_tokens": 3}, 3 * 2_000_000),
        ({"ephemeral_1h_input_tokens": 3}, 3 * 2_000_000),
        ({"cache_creation_input_tokens": 1, "ephemeral_1h_input_tokens": 3}, 3 * 2_000_000),
        ({"web_search_requests": 5}, 0),
    ],
)
def test_each_kind_of_token_has_its_price(tokens: dict[str, int], pico: int) -> None:
    """Those kept for an hour are a part of those written, and priced once."""
    assert cost(HAIKU, tokens) == pico


def test_a_message_costs_what_its_bill_says() -> None:
    """The sum of a real message, to the last digit."""
    tokens = {"input_tokens": 472, "output_tokens": 89, "cache_read_input_tokens": 13_119}
    assert dollars(cost(HAIKU, tokens)) == "0.0022289"


def test_no_request_costs_more_than_a_counter_holds() -> None:
    """A hostile count is charged as the most that there is; one below it is exact."""
    dear = Price(*[999_999_999_999] * 5)
    assert cost(dear, {"input_tokens": 10**15 - 1, "output_tokens": 10**15 - 1}) == MOST_PER_REQUEST
    assert cost(Price(1, 0, 0, 0, 0), {"input_tokens": MOST_PER_REQUEST}) == MOST_PER_REQUEST
    assert cost(Price(1, 0, 0, 0, 0), {"input_tokens": MOST_PER_REQUEST - 1}) == MOST_PER_REQUEST - 1


COUNT = st.integers(0, 10**6)


@given(
    st.lists(st.decimals(0, 100, places=6), min_size=5, max_size=5), st.lists(COUNT, min_size=5, max_size=5)
)
@settings(deadline=None)
def test_costs_are_exact(rates: list[Decimal], counts: list[int]) -> None:
    """Any prices and counts cost what decimal arithmetic says, in whole pico-dollars."""
    names = [field.name for field in dataclasses.fields(Listed)]
    row = ", ".join(f"{name}: {rate:f}" for name, rate in zip(names, rates, strict=True))
    price, _ = prices.load(f"default: {{{row}}}").of("p", "m")
    uncached, output, read, written, kept = counts
    tokens = {
        "input_tokens": uncached,
        "output_tokens": output,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written + kept,
        "ephemeral_1h_input_tokens": kept,
    }
    in_dollars = sum(rate * count for rate, count in zip(rates, counts, strict=True)) / 10**6
    assert cost(price, tokens) == in_dollars * 10**12


# The shipped list.

TEXT = SHIPPED.read_text("utf-8")
SHIPPED_PRICES = prices.load(TEXT)
RAW = yaml.safe_load(TEXT)
FIELDS = [(cls, field) for cls in (PriceList, Listed) for field in dataclasses.fields(cls)]


def squeezed(text: str) -> str:
    """Comments as one line."""
    return " ".join(re.sub(r"^\s*#", "", text, flags=re.MULTILINE).split())


def comment_above(key: str) -> str:
    """The comment above the first line that begins with a key."""
    lines = TEXT.splitlines()
    end = next(index for index, line in enumerate(lines) if line.strip().startswith(f"{key}:"))
    begin = end
    while begin and lines[begin - 1].lstrip().startswith("# "):
        begin -= 1
    return squeezed("\n".join(lines[begin:end]))


@pytest.mark.parametrize(
    ("cls", "field"), FIELDS, ids=[f"{cls.__name__}.{field.name}" for cls, field in FIELDS]
)
def test_every_key_is_explained_once(cls: type, field: dataclasses.Field[Any]) -> None:
    """The comment above a key begins with the code's words, which are nowhere else; its default is true."""
    comment, states, default = comment_above(field.name).partition("default: ")
    assert comment.startswith(field.metadata["doc"])
    assert squeezed(TEXT).count(field.metadata["doc"]) == 1
    has_default = field.default_factory is not dataclasses.MISSING
    assert bool(states) == has_default
    if has_default:
        assert yaml.safe_load(default) == field.default_factory()  # type: ignore[misc]


def test_examples_in_the_shipped_list_load() -> None:
    """Switched on, the examples are rows like others."""
    switched_on = prices.load(re.sub(r"^#(?! \S)", "", TEXT, flags=re.MULTILINE))
    assert switched_on.of("ollama", "qwen3") == (Price(0, 0, 0, 0, 0), True)
    assert SHIPPED_PRICES.of("ollama", "qwen3")[1] is False


@pytest.mark.parametrize(
    ("model", "row"),
    [
        # Anthropic, pricing page: input, 5m cache writes, 1h cache writes, cache hits, output.
        ("claude-opus-4-8", "5 6.25 10 0.50 25"),
        ("claude-opus-4-20250514", "15 18.75 30 1.50 75"),
        ("claude-sonnet-4-5-20250929", "3 3.75 6 0.30 15"),
        ("claude-haiku-4-5", "1 1.25 2 0.10 5"),
        ("claude-haiku-4-5-20251001", "1 1.25 2 0.10 5"),
        ("claude-haiku-4-5@20251001", "1 1.25 2 0.10 5"),
        ("claude-3-5-haiku-latest", "0.80 1 1.60 0.08 4"),
        ("claude-3-haiku-20240307", "0.25 0.30 0.50 0.03 1.25"),
        ("claude-fable-5-20260609", "10 12.50 20 1 50"),
        ("claude-fable-5-1", "10 12.50 20 0.25 50"),
        ("claude-fable-5-2", "8 10 16 0.20 40"),
        ("claude-opus-5", "5 6.25 10 0.50 25"),
        ("claude-opus-5-5", "4 5 8 0.20 20"),
        ("claude-2.1", "8 8 8 8 24"),
        ("claude-instant-1.2", "0.80 0.80 0.80 0.80 2.40"),
        ("gpt-5-mini-2025-08-07", "0.25 0.25 0.25 0.025 2"),
        ("gpt-5-2025-08-07", "1.25 1.25 1.25 0.125 10"),
        ("gpt-4o-2024-05-13", "5 5 5 5 15"),
        ("gpt-4o-2024-11-20", "2.50 2.50 2.50 1.25 10"),
        ("gemini-2.5-flash-lite", "0.10 0.10 0.10 0.01 0.40"),
        ("command-r-08-2024", "0.15 0.15 0.15 0.15 0.60"),
    ],
)
def test_a_model_has_its_public_price(model: str, row: str) -> None:
    """Rows and patterns lead the names that are in use to the prices on the providers' pages."""
    price, known = SHIPPED_PRICES.of("any", model)
    per_million = (price.input, price.cache_write, price.cache_write_1h, price.cache_read, price.output)
    assert known
    assert per_million == tuple(int(Decimal(each) * 10**6) for each in row.split())


@pytest.mark.parametrize(
    "model",
    [
        *("claude-9", "claude-fable-6", "claude-fable-5-3", "claude-opus-4-9", "claude-sonnet-5-6", "m"),
        *("gpt-4o-realtime-preview", "gpt-4o-mini-tts", "gpt-5-image", "gemini-9", "gemini-2.5-flash-image"),
    ],
)
def test_what_is_not_in_the_list_is_not_guessed(model: str) -> None:
    """A model that comes next, or one that is not for text, has the default price, and a line in the log."""
    price, known = SHIPPED_PRICES.of("any", model)
    assert (price, known) == (Listed(10**7, 5 * 10**7, 10**6, 12_500_000, 2 * 10**7).price, False)


@pytest.mark.parametrize("name", RAW["models"])
def test_a_row_is_plausible_and_in_use(name: str) -> None:
    """Caches are read below the price of input and written above it; no longer pattern hides a row."""
    row = {key: Decimal(str(value)) for key, value in RAW["models"][name].items()}
    assert row["output"] > row["input"] or row["output"] == 0
    assert row.get("cache_read", row["input"]) <= row["input"] <= row.get("cache_write", row["input"])
    assert row.get("cache_write", 0) <= row.get("cache_write_1h", row.get("cache_write", 0))
    assert ("cache_write" in row) == ("cache_write_1h" in row)
    price, known = SHIPPED_PRICES.of("any", name.replace("*", "260101"))
    assert known
    assert price == Listed(**{key: int(value * 10**6) for key, value in row.items()}).price
