"""The table of known providers: what holds for every entry, and what clients and configs make of it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest

from proxy import values
from proxy.config import load
from proxy.connection import Origin
from proxy.formats import FORMATS
from proxy.known import PROVIDERS, Known
from proxy.local import local_config

REGION = "eu-central-1"
ENTRIES = [(name, form, url) for name, known in PROVIDERS.items() for form, url in known.base_urls.items()]
VERSION = re.compile("v[0-9]+(beta)?")


def placed(url: str) -> str:
    return url.replace("{region}", REGION)


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_name_can_stand_in_front_of_a_model(name: str) -> None:
    """It is one that a config may have, and its own nearest: `provider/model` is split at the slash."""
    assert values.provider_name(name) == name
    assert name == name.lower()


@pytest.mark.parametrize(("name", "form", "url"), ENTRIES)
def test_a_base_url_is_one_that_a_config_may_have(name: str, form: str, url: str) -> None:
    """It passes the config's own checks unchanged, and a connection can be made to it."""
    assert values.wire_format(form) == form
    assert values.base_url(placed(url)) == placed(url)
    assert Origin.parse(placed(url)).host


@pytest.mark.parametrize(("name", "form", "url"), ENTRIES)
def test_a_base_url_means_what_the_sdk_of_its_format_means(name: str, form: str, url: str) -> None:
    """OpenAI's has a version in its path, other formats' has none; DeepSeek's is documented without."""
    versions = [part for part in urlsplit(placed(url)).path.split("/") if VERSION.fullmatch(part)]
    assert len(versions) == (form == "openai" and name != "deepseek")


@pytest.mark.parametrize(("name", "form", "url"), ENTRIES)
def test_keys_go_over_tls_and_local_providers_want_none(name: str, form: str, url: str) -> None:
    """A key is never sent in the clear, unless it is for this machine."""
    local = urlsplit(url).hostname == "localhost"
    assert url.startswith("http://" if local else "https://")
    assert PROVIDERS[name].is_key_less == local


def test_no_local_provider_is_where_the_proxy_listens() -> None:
    """It would ask itself for ever: port 8080 is its own default."""
    assert not [url for _, _, url in ENTRIES if urlsplit(url).hostname == "localhost" and ":8080" in url]


def test_no_two_providers_are_at_one_address() -> None:
    """A copied line with a new name would be at the old one's address."""
    urls = [url for _, _, url in ENTRIES]
    assert len(set(urls)) == len(urls)


def test_a_variable_belongs_to_one_provider() -> None:
    """But for Bedrock's, which has two doors: one service's key is not shown to another."""
    owners: dict[str, list[str]] = {}
    for name, known in PROVIDERS.items():
        for variable in known.variables:
            assert re.fullmatch("[A-Z][A-Z0-9_]*", variable)
            owners.setdefault(variable, []).append(name)
    shared = [names for names in owners.values() if len(names) > 1]
    assert shared == [["bedrock", "bedrock_mantle"]]


@pytest.mark.parametrize(("name", "known"), PROVIDERS.items())
def test_whoever_wants_a_key_says_what_it_is_called(name: str, known: Known) -> None:
    """And where a format goes as a bearer, the provider speaks it, and the format does otherwise."""
    assert known.variables or known.is_key_less
    assert set(known.bearers) <= set(known.base_urls)
    for form in known.bearers:
        assert FORMATS[form].credential[0] != b"Authorization"


def test_every_wire_format_has_its_own_provider() -> None:
    """Under the name that the format gives; Azure's address alone is the user's."""
    for form in FORMATS.values():
        known = PROVIDERS[form.own_provider]
        assert form.name in known.base_urls or known.base_urls == {}
    assert [name for name, known in PROVIDERS.items() if not known.base_urls] == ["azure"]


def test_the_table_cannot_be_changed() -> None:
    """It is read by everybody."""
    with pytest.raises(TypeError):
        PROVIDERS["other"] = Known({})  # type: ignore[index]


@pytest.mark.parametrize("name", [name for name, known in PROVIDERS.items() if known.base_urls])
def test_a_config_needs_no_more_than_the_name(name: str) -> None:
    """Each is completed from the table; Bedrock's with the region of its key."""
    key = "{name: main, value: env.KEY}"
    if "{region}" in "".join(PROVIDERS[name].base_urls.values()):
        key = f"{{name: main, bedrock_key_config: {{region: {REGION}}}}}"
    keys = "" if PROVIDERS[name].is_key_less else f"keys: [{key}]"
    loaded = load(f"providers: {{{name}: {{{keys}}}}}", {"KEY": "sk-test"}, lambda path: path)
    expected = {form: placed(url) for form, url in PROVIDERS[name].base_urls.items()}
    assert dict(loaded.providers[name].base_urls) == expected
    assert loaded.providers[name].is_key_less == PROVIDERS[name].is_key_less


def test_of_two_variables_the_one_that_the_sdk_prefers_counts() -> None:
    """google-genai takes GOOGLE_API_KEY before GEMINI_API_KEY, cohere CO_API_KEY before COHERE_API_KEY."""
    environ = {
        "GEMINI_API_KEY": "sk-test-1",
        "GOOGLE_API_KEY": "sk-test-2",
        "COHERE_API_KEY": "sk-test-3",
        "CO_API_KEY": "sk-test-4",
    }
    providers = local_config(environ).providers
    assert [key.name for key in providers["gemini"].keys] == ["GOOGLE_API_KEY"]
    assert [key.name for key in providers["cohere"].keys] == ["CO_API_KEY"]
