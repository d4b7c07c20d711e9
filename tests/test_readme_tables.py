"""The README's tables of providers and of wire formats say what the code and the tests have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.formats import FORMATS
from proxy.known import PROVIDERS

TESTS = Path(__file__).parent
README = (TESTS.parent / "README.md").read_text("utf-8")


def rows(heading: str) -> dict[str, list[str]]:
    """The table under a heading, by what stands in its first column."""
    text = README.partition(f"### {heading}\n")[2].partition("\n#")[0]
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {first.strip("`"): rest for first, *rest in cells}


PROVIDER_ROWS = rows("Providers")
FORMAT_ROWS = rows("Wire formats")


def test_every_provider_and_every_format_has_a_row() -> None:
    """And no row is without one."""
    assert set(PROVIDER_ROWS) == set(PROVIDERS)
    assert set(FORMAT_ROWS) == set(FORMATS)


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_provider_s_row(name: str) -> None:
    """Its base URLs, how its key is wanted, and where that is looked for."""
    known = PROVIDERS[name]
    openai, anthropic, own, variables = PROVIDER_ROWS[name]
    urls = {wire_format: url.replace("{region}", "REGION") for wire_format, url in known.base_urls.items()}
    others = [url for wire_format, url in urls.items() if wire_format not in ("openai", "anthropic")]
    assert (openai if known.base_urls else "-") == (f"`{urls['openai']}`" if "openai" in urls else "-")
    bearer = " (bearer)" if "anthropic" in known.bearers else ""
    assert anthropic == (f"`{urls['anthropic']}`{bearer}" if "anthropic" in urls else "-")
    if known.base_urls:
        assert own == (f"`{others[0]}`" if others else "-")
    assert re.findall(r"`([A-Z_]+)`", variables) == list(known.variables)
    assert ("none needed" in variables) == known.is_key_less


@pytest.mark.parametrize("name", FORMATS)
def test_the_versions_that_were_tested_are_pinned_in_tests(name: str) -> None:
    """A version in the table stands in a test; who raises it there raises it here."""
    told = FORMAT_ROWS[name][-1]
    versions = re.findall(r"\d+\.\d+\.\d+", told)
    assert versions
    pinned = "\n".join(
        path.read_text("utf-8") for path in TESTS.glob("*.py") if path.name != Path(__file__).name
    )
    for version in versions:
        assert re.search(rf"(?<![\d.]){re.escape(version)}(?![\d.])", pinned), version
