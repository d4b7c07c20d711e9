"""Providers as the config describes them: base URLs, keys, patience.

Facts
  - A base URL means what the SDK of its wire format means by it: Anthropic's has no ``/v1``, OpenAI's
    ends in it.

Not here: the other keys of the config (`config`), which provider is asked (`plan`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType

from . import known, values
from .schema import BROKEN, Document, Path, nearest
from .shapes import boolean, mapping, number, optional, record, row, sequence, setting, text
from .values import Secret

_SECONDS = number(0, above=True)
_STRING = text()


@dataclass(frozen=True, slots=True)
class BedrockKeyConfig:
    """Credentials that sign requests for AWS, instead of a key."""

    region: str = field(
        metadata=row(text(values.region), "The AWS region that the provider's base URLs are in.")
    )
    access_key: Secret | None = setting(
        None,
        optional(values.secret),
        "An access key id, as env.NAME or file:PATH. Without one it is the profile's, or what AWS's SDKs"
        " find: the environment, the shared files, the role of the container or of the machine.",
    )
    secret_key: Secret | None = setting(
        None, optional(values.secret), "The secret access key that belongs to it."
    )
    session_token: Secret | None = setting(
        None, optional(values.secret), "The session token, where the two are temporary."
    )
    profile: str | None = setting(None, optional(_STRING), "A profile of AWS's shared files.")


@dataclass(frozen=True, slots=True)
class Key:
    """A credential of ours at a provider."""

    name: str = field(metadata=row(_STRING, "What logs call the key; no other key of the provider has it."))
    value: Secret | None = setting(
        None,
        optional(values.secret),
        "The key itself, as env.NAME or file:PATH. A key has this or the next.",
    )
    weight: float = setting(1.0, number(0, 100_000), "Its share of the requests, relative to the other keys.")
    models: tuple[str, ...] = setting(
        ("*",), sequence(_STRING, least=1), "The models that the key may be used for, as shell globs."
    )
    bedrock_key_config: BedrockKeyConfig | None = setting(
        None,
        optional(record(BedrockKeyConfig)),
        "What signs requests for AWS, instead of a value.",
    )

    @property
    def signs(self) -> bool:
        """Whether requests are signed with it, and not shown it."""
        return self.bedrock_key_config is not None

    def allows(self, model: str) -> bool:
        """Whether it may be used for a model."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """How long a provider may take, in seconds, and how often one target is tried."""

    connect_timeout: float = setting(5.0, _SECONDS, "Seconds to look up the name, connect and do TLS.")
    first_byte_timeout: float = setting(600.0, _SECONDS, "Seconds from the request to the response head.")
    idle_timeout: float = setting(300.0, _SECONDS, "Seconds without a byte of the response body.")
    max_retries: int = setting(
        1, number(0, 10, whole=True), "How often the same target may be tried again before the next one is."
    )
    retry_backoff_initial: float = setting(
        0.5,
        _SECONDS,
        "The wait before the first retry, in seconds; it doubles with every further one, with jitter.",
    )
    retry_backoff_max: float = setting(
        5.0, _SECONDS, "The longest wait before a retry, in seconds, an upstream's retry-after included."
    )


@dataclass(frozen=True, slots=True)
class Provider:
    """A named upstream. `base_urls` maps wire formats to URLs without a slash at the end."""

    name: str = field(metadata=row(None, "The provider's name: letters, digits, dots, dashes, underscores."))
    base_urls: Mapping[str, str] = setting(
        MappingProxyType({}),
        mapping(values.wire_format, text(values.base_url)),
        "The base URL for each wire format that the provider speaks, as the format's SDK would have it."
        " Without any, the provider is the one that is known by this name.",
    )
    keys: tuple[Key, ...] = setting(
        (),
        sequence(record(Key)),
        "Our keys. Without any, the client's own credentials go through, to a default provider only.",
    )
    is_key_less: bool = setting(False, boolean, "true: the provider wants no credentials.")
    network_config: NetworkConfig = field(
        default=NetworkConfig(), metadata=row(record(NetworkConfig), "Timeouts and retries.")
    )
    bearers: tuple[str, ...] = setting(
        (),
        sequence(text(values.wire_format)),
        "The wire formats in which the provider wants its key as a bearer, whatever the format says.",
    )


def _check_key(document: Document, path: Path, key: Key) -> None:
    signing = key.bedrock_key_config
    if BROKEN in (key.value, signing):
        return
    if (key.value is None) == (signing is None):
        document.problem(path, "has a value or a bedrock_key_config, one of the two")
    if signing is None or BROKEN in (signing.access_key, signing.secret_key, signing.profile):
        return
    if (signing.access_key is None) != (signing.secret_key is None):
        document.problem((*path, "bedrock_key_config"), "access_key and secret_key go together")
    if signing.access_key is not None and signing.profile is not None:
        document.problem((*path, "bedrock_key_config", "profile"), "is for who has no access_key")
    if signing.session_token is not None and signing.access_key is None:
        document.problem((*path, "bedrock_key_config", "session_token"), "belongs to an access_key")


def completed(document: Document, path: Path, provider: Provider) -> Provider:
    """`provider` with what is known of the one that has its name, as far as the file does not say it."""
    found = known.PROVIDERS.get(provider.name)
    urls, keys = provider.base_urls, () if provider.keys is BROKEN else provider.keys
    if not urls and document.sound((*path, "base_urls")):
        urls = _known_urls(document, (*path, "base_urls"), provider.name, keys, found)
    if found is None or BROKEN in (provider.bearers, provider.is_key_less):
        return dataclasses.replace(provider, base_urls=urls)
    return dataclasses.replace(
        provider,
        base_urls=urls,
        bearers=provider.bearers or found.bearers,
        is_key_less=provider.is_key_less or (found.is_key_less and not keys),
    )


def _known_urls(
    document: Document, path: Path, name: str, keys: Iterable[Key], found: known.Known | None
) -> Mapping[str, str]:
    """The base URLs of the provider that is known by this name."""
    if found is None:
        near = nearest(name, (each for each, known_one in known.PROVIDERS.items() if known_one.base_urls))
        document.problem(path, f"is missing, and no provider that is known has this name{near}")
    elif not found.base_urls:
        document.problem(path, "is missing: each resource has its own, such as https://NAME.openai.azure.com")
    else:
        signing = (key.bedrock_key_config for key in keys if key is not BROKEN)
        regions = {each.region for each in signing if each is not None and each is not BROKEN} - {BROKEN}
        if len(regions) == 1 or not any("{region}" in url for url in found.base_urls.values()):
            region = next(iter(regions), "")
            return MappingProxyType(
                {form: url.replace("{region}", region) for form, url in found.base_urls.items()}
            )
        form, url = next(iter(found.base_urls.items()))
        document.problem(
            path,
            "is missing, and the keys name no region, or several (bedrock_key_config); write base_urls:"
            f" {{{form}: {url.replace('{region}', 'REGION')}}}",
        )
    return MappingProxyType({})


def check(document: Document, path: Path, provider: Provider) -> None:
    keys = () if provider.keys is BROKEN else provider.keys
    names: set[str] = set()
    for index, key in enumerate(keys):
        if key is not BROKEN:
            _check_key(document, (*path, "keys", index), key)
        if key is not BROKEN and key.name in names:
            document.problem((*path, "keys", index, "name"), "another key of this provider has this name")
        if key is not BROKEN and key.name is not BROKEN:
            names.add(key.name)
    if keys and all(key is not BROKEN and key.weight == 0 for key in keys):
        document.problem((*path, "keys"), "no key has a weight above 0, so none would be used")
    if provider.is_key_less is True and keys:
        document.problem((*path, "is_key_less"), "true, and yet there are keys; take one of the two out")
    network = provider.network_config
    waits = () if network is BROKEN else (network.retry_backoff_initial, network.retry_backoff_max)
    if waits and BROKEN not in waits and waits[0] > waits[1]:
        wrong = f"less than retry_backoff_initial, which is {waits[0]:g}"
        document.problem((*path, "network_config", "retry_backoff_max"), wrong)
