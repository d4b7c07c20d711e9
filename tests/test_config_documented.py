"""Every key of the configuration is explained once in the shipped files, and what they say is right."""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from proxy import config
from proxy.config import Config, Key, NetworkConfig, Provider
from proxy.grants import Budget, ConfiguredKey, Customer, ProviderConfig, RateLimit, Team
from proxy.job import Settings
from proxy.notices import Webhook
from proxy.providers import BedrockKeyConfig

CONF = Path(__file__).parent.parent / "conf"
SHIPPED = sorted(set(CONF.glob("*.yaml")) - {CONF / "prices.yaml"})
CLASSES = (
    *(Config, Provider, Key, BedrockKeyConfig, NetworkConfig),
    *(ConfiguredKey, ProviderConfig, Team, Customer, Budget, RateLimit, Settings, Webhook),
)
FIELDS = [(cls, field) for cls in CLASSES for field in dataclasses.fields(cls)]
NAMED = {
    "providers": Provider,
    "virtual_keys": ConfiguredKey,
    "teams": Team,
    "customers": Customer,
    "webhooks": Webhook,
}
"""By key: what stands there under names of its own."""

LISTED = {"keys": Key, "provider_configs": ProviderConfig, "budgets": Budget}
INSIDE = {
    "network_config": NetworkConfig,
    "rate_limit": RateLimit,
    "jobs": Settings,
    "bedrock_key_config": BedrockKeyConfig,
}
BY_NAME = pytest.mark.parametrize(
    ("cls", "field"), FIELDS, ids=[f"{cls.__name__}.{field.name}" for cls, field in FIELDS]
)
BY_FILE = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)


class Comment(NamedTuple):
    """The comment above one key of a shipped file. `default` is None where it states none."""

    cls: type
    key: str
    text: str
    default: str | None


def keys(cls: type, node: Any) -> Iterator[tuple[type, str, int]]:
    """Each key below `node`, with the class that it is a field of and its line, counted from 0."""
    for key, value in node.value:
        yield cls, key.value, key.start_mark.line
        if cls is Config and key.value in NAMED:
            for name, inner in value.value:
                yield NAMED[key.value], "name", name.start_mark.line
                yield from keys(NAMED[key.value], inner)
        elif key.value in LISTED:
            for item in value.value:
                yield from keys(LISTED[key.value], item)
        elif key.value in INSIDE and isinstance(value, yaml.MappingNode):
            yield from keys(INSIDE[key.value], value)


def comments(path: Path) -> Iterator[Comment]:
    lines = path.read_text("utf-8").splitlines()
    for cls, key, line in keys(Config, yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)):
        first = line
        while first and lines[first - 1].lstrip().startswith("# "):
            first -= 1
        text = squeezed("\n".join(lines[first:line]))
        said, states, default = text.partition("default: ")
        yield Comment(cls, key, said.strip(), default if states else None)


def squeezed(text: str) -> str:
    """A comment as one line."""
    return " ".join(re.sub(r"^\s*#", "", text, flags=re.MULTILINE).split())


def has_default(field: dataclasses.Field[Any]) -> bool:
    return not field.default is field.default_factory is dataclasses.MISSING


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The code's default, in the types that YAML has; a number as a number, all else as strings."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if isinstance(value, NetworkConfig | Settings):
        return {} if value == type(value)() else value
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def load(text: str) -> Config:
    """Load a shipped text, with the variables and files that it names."""
    environ = dict.fromkeys(re.findall(r"env\.(\w+)", text), "sk-bf-sk-test-shipped")
    environ["VERBATIM_WEBHOOK_SECRET"] = f"whsec_{base64.b64encode(bytes(32)).decode()}"
    files = {f"/credentials/{name}": "sk-test-shipped\n" for name in re.findall(r"file:(\w+)", text)}
    files["prices.yaml"] = (CONF / "prices.yaml").read_text("utf-8")
    return config.load(text, environ | {"CREDENTIALS_DIRECTORY": "/credentials"}, files.__getitem__)


ALL = [comment for path in SHIPPED for comment in comments(path)]
WORDS = squeezed("\n".join(path.read_text("utf-8") for path in SHIPPED))


@BY_NAME
def test_every_key_is_explained_once(cls: type, field: dataclasses.Field[Any]) -> None:
    """Of the comments above a key, one begins with the code's explanation of it, which is nowhere else."""
    doc = field.metadata["doc"]
    above = [comment.text for comment in ALL if (comment.cls, comment.key) == (cls, field.name)]
    assert [text.startswith(doc) for text in above].count(True) == 1, above
    assert WORDS.count(doc) == 1


@BY_NAME
def test_stated_default_is_the_code_s(cls: type, field: dataclasses.Field[Any]) -> None:
    """Beside its explanation, and nowhere else, a key's default is stated, if it has one, and it is true."""
    above = [comment for comment in ALL if (comment.cls, comment.key) == (cls, field.name)]
    stated = [comment.default for comment in above if comment.text.startswith(field.metadata["doc"])]
    assert [comment.default for comment in above if comment.default is not None] == (
        stated if has_default(field) else []
    )
    if has_default(field):
        value = yaml.safe_load(str(stated[0]))
        assert (list(map(str, value)) if isinstance(value, list) else value) == default_of(field)


def test_every_key_of_the_table_is_read() -> None:
    """A field that the parser does not read is the name under which its record stands, and only that."""
    unread = [(cls, field.name) for cls, field in FIELDS if "shape" not in field.metadata]
    assert unread == [(cls, "name") for cls in (Provider, ConfiguredKey, Team, Customer)]


@BY_FILE
def test_shipped_file_loads(path: Path) -> None:
    """A shipped file has no problem once the secrets that it names are there."""
    assert load(path.read_text("utf-8")).providers["anthropic"].base_urls["anthropic"]


@BY_FILE
def test_examples_in_shipped_file_load(path: Path) -> None:
    """A shipped file has no problem either when every example in it is switched on."""
    text = path.read_text("utf-8")
    on = re.sub(r"^#(?! \S)", "", text, flags=re.MULTILINE)
    config_with_examples = load(on)
    assert (config_with_examples != load(text)) == (on != text)


def test_local_file_has_an_example() -> None:
    """The local file shows a fallback to a server that wants no key; switched on, the plan has it."""
    text = next(path for path in SHIPPED if path.name == "local.yaml").read_text("utf-8")
    switched_on = load(re.sub(r"^#(?! \S)", "", text, flags=re.MULTILINE))
    (targets,) = switched_on.models.values()
    assert [switched_on.providers[target.split("/")[0]].is_key_less for target in targets] == [False, True]
    assert switched_on.default_providers["anthropic"] == targets[0].split("/")[0]
