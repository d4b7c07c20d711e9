"""The configuration: which keys there are, what each means, and what must hold between them.

Rules
  1. One table: a field of a dataclass holds a key's name, type, default, shape and explanation. The parser,
     the defaults and the test that every key is explained read it.
  2. A client's credentials go to the wire format's default provider only. So an alias's target without
     credentials of its own, and nobody's default, could never be used: that is a problem here.

Not here: opening files and reading the environment (the caller passes both), how YAML is read (`schema`),
what a single value must look like (`values`), what a provider has (`providers`), the config that there is
without a file (`local`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import yaml

from . import grants, job, notices, prices, providers, values
from .formats import FORMATS
from .grants import ConfiguredKey, Customer, Team
from .prices import Prices
from .providers import Key, NetworkConfig, Provider
from .schema import BROKEN, ConfigError, Document, Path, Problem, compose, printable
from .shapes import boolean, mapping, number, optional, record, row, sequence, setting, text
from .values import EVENTS, WIRE_FORMATS, Secret

__all__ = ["Config", "ConfigError", "Key", "NetworkConfig", "Problem", "Provider", "Secret", "load"]

FALLBACK_ON = (*EVENTS, "401", "402", "403", "404", "408", "429", "500", "502", "503", "504", "529")


_STORE_FAILURES = ("refuse", "allow")


def _price_list(document: Document, node: yaml.Node, path: Path) -> Any:
    """The `Prices` in the file that a string names."""

    def read(name: str) -> Prices:
        try:
            return prices.load(document.read_file(name))
        except OSError as error:
            raise ValueError(
                f"file {printable(name)} cannot be read: {error.strerror or type(error).__name__}"
            ) from None
        except UnicodeDecodeError:
            raise ValueError(f"file {printable(name)} cannot be read: it is not UTF-8 text") from None
        except ConfigError as error:
            others = len(error.problems) - 1
            more = f" (and {others} more)" if others else ""
            raise ValueError(f"in {printable(name)}: {error.problems[0]}{more}") from None

    return text(read)(document, node, path)


_SECONDS = number(0, above=True)
_STRING = text()
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole file. Times are seconds, sizes are bytes."""

    listen: tuple[str, ...] = setting(
        ("127.0.0.1:8080",),
        sequence(text(values.address), least=1),
        "Where clients connect: HOST:PORT, [IPv6]:PORT or unix:/PATH; port 0 is any free port."
        " Sockets that systemd passes win over this list.",
    )
    public_url: str | None = setting(
        None,
        optional(text(values.origin)),
        "Scheme, host and port at which clients reach the proxy, for the results_url of batches."
        " null: as the request's own Host header says.",
    )
    max_body_bytes: int = setting(
        33554432, number(1, whole=True), "The largest body of a model request; beyond it the answer is 413."
    )
    max_buffered_bytes: int = setting(
        536870912,
        number(1, whole=True),
        "The most bytes of bodies held at a time, all requests together; beyond it the answer is 503.",
    )
    head_timeout: float = setting(
        10.0,
        _SECONDS,
        "Seconds that a request head may take, and a new connection until its first; then the answer is 408.",
    )
    body_timeout: float = setting(
        30.0,
        _SECONDS,
        "Seconds in which a request body must come to its end, or by 4096 bytes further (one that is held:"
        " or by a 64th, if that is more); else the answer is 408.",
    )
    send_timeout: float = setting(
        300.0,
        _SECONDS,
        "Seconds that a slow reader may take for what waits for it; then its connection is reset.",
    )
    keepalive_timeout: float = setting(75.0, _SECONDS, "Seconds that an idle client connection stays open.")
    drain_timeout: float = setting(30.0, _SECONDS, "Seconds that SIGTERM waits for open requests.")
    ping_interval: float = setting(
        15.0, number(0), "Seconds of silence in a stream after which the client gets a ping. 0: no pings."
    )
    early_stream_after: float = setting(
        0.0,
        number(0),
        "Seconds without an upstream head after which a stream begins as 200 with pings; an upstream error"
        " is then an error event, and no longer a status. 0: never.",
    )
    max_buffer_bytes: int = setting(
        262144, number(1024, whole=True), "The most bytes held for one stream, both sides together."
    )
    providers: Mapping[str, Provider] = field(
        metadata=row(mapping(values.provider_name, record(Provider)), "Who answers requests; one at least.")
    )
    default_providers: Mapping[str, str] = setting(
        _NOTHING,
        mapping(values.wire_format, _STRING),
        "For each wire format, the provider of models that name none, and the only one that may be sent"
        " the client's own credentials. The only one that speaks a format need not be named, nor the"
        " format's own: anthropic, openai, gemini for genai, azure, cohere, bedrock.",
    )
    models: Mapping[str, tuple[str, ...]] = setting(
        _NOTHING,
        mapping(str, sequence(text(values.target), least=1, one=True)),
        "Model names of our own. Each stands for targets, as provider/model: the first is asked first,"
        " the others are its fallbacks.",
    )
    fallback_on: tuple[str, ...] = setting(
        FALLBACK_ON,
        sequence(values.event),
        "The upstream statuses and failures that lead to the next target.",
    )
    store: str | None = setting(
        None,
        optional(text(values.store)),
        "Where state is kept that all workers share: sqlite:PATH or redis://HOST[:PORT]/DB, rediss:// for"
        " TLS. Virtual keys that are not in this file, and all limits, need it.",
    )
    store_password: Secret | None = setting(
        None, optional(values.secret), "The password of a Redis store, as env.NAME or file:PATH."
    )
    on_store_failure: str = setting(
        "refuse",
        text(values.one_of(_STORE_FAILURES)),
        "refuse or allow: what happens to requests that have a limit while the store cannot be asked."
        " What is allowed then is counted when the store is back.",
    )
    jobs: job.Settings = setting(
        job.Settings(),
        record(job.Settings),
        "Requests that are answered later (x-bf-async: true). They need a store.",
    )
    webhooks: Mapping[str, notices.Webhook] = setting(
        _NOTHING,
        mapping(values.webhook_name, record(notices.Webhook)),
        "Who is told of the ends of jobs, by name; a request names one in x-bf-async-webhook.",
    )
    admin_key: Secret | None = field(
        default=None,
        metadata=row(
            optional(values.secret),
            "The credential for the /api/ routes, as env.NAME or file:PATH. Without it there are none.",
        ),
    )
    require_virtual_key: bool = setting(
        False, boolean, "true refuses every request without a valid virtual key with 401."
    )
    allow_direct_keys: bool = setting(
        False,
        boolean,
        "true: a client's own provider key is used instead of ours, at the default provider.",
    )
    prices: Prices | None = setting(
        None,
        optional(_price_list),
        "The file of prices, without which there are no budgets. A relative path begins at this file.",
    )
    virtual_keys: Mapping[str, ConfiguredKey] = setting(
        _NOTHING,
        mapping(values.own_name, record(ConfiguredKey)),
        "Virtual keys by name. Others can be kept in the store.",
    )
    teams: Mapping[str, Team] = setting(
        _NOTHING, mapping(values.own_name, record(Team)), "Teams by name, which is also their id."
    )
    customers: Mapping[str, Customer] = setting(
        _NOTHING, mapping(values.own_name, record(Customer)), "Customers by name, which is also their id."
    )

    def key_names(self) -> dict[str, list[str]]:
        """The names of each provider's keys, those that could be read."""
        return {
            name: [key.name for key in provider.keys if key is not BROKEN and key.name is not BROKEN]
            for name, provider in self.providers.items()
            if provider is not BROKEN and provider.keys is not BROKEN
        }

    @property
    def side_bytes(self) -> int:
        """What may wait for each side: of `max_buffer_bytes` a quarter, beside what one read brings."""
        return self.max_buffer_bytes // 4


def load(source: str, environ: Mapping[str, str], read: Callable[[str], str]) -> Config:
    """The configuration that a YAML text describes. `read` returns the text of the file of a secret.

    Raises `ConfigError` with every problem at once; an OSError or a ValueError of `read` becomes one of them.
    """
    document = Document(environ, read)
    root = compose(source)
    if root is None:
        raise ConfigError([Problem("providers", 1, "is missing, and there is no default: the file is empty")])
    config: Config = document.read(record(Config), root, ())
    sizes = (config.max_body_bytes, config.max_buffered_bytes) if config is not BROKEN else ()
    if sizes and BROKEN not in sizes and sizes[0] > sizes[1]:
        wrong = f"less than max_body_bytes, which is {sizes[0]}"
        document.problem(("max_buffered_bytes",), wrong)
    if config is not BROKEN and config.providers is not BROKEN:
        config = _with_defaults(document, config)
        _check_models(document, config)
        _check_grants(document, config)
        _check_jobs(document, config)
    if document.problems:
        raise ConfigError(document.problems)
    return config


def _with_defaults(document: Document, config: Config) -> Config:
    """`config` with the default providers that go without saying. Checks providers and named defaults."""
    if not config.providers:
        document.problem(("providers",), "is empty; name at least one provider")
    speakers: dict[str, list[str]] = {wire_format: [] for wire_format in WIRE_FORMATS}
    readable = {
        name: providers.completed(document, ("providers", name), provider)
        for name, provider in config.providers.items()
        if provider is not BROKEN
    }
    config = dataclasses.replace(config, providers=MappingProxyType({**config.providers, **readable}))
    for name, provider in readable.items():
        providers.check(document, ("providers", name), provider)
        for wire_format in provider.base_urls if provider.base_urls is not BROKEN else ():
            speakers.setdefault(wire_format, []).append(name)
    if config.default_providers is BROKEN:
        return config
    for wire_format, name in config.default_providers.items():
        path = ("default_providers", wire_format)
        if not document.sound(path):
            continue
        told = name in readable and document.sound(("providers", name, "base_urls"))
        if name not in config.providers:
            document.problem(path, _dangling(name, config))
        elif told and name not in speakers[wire_format]:
            document.problem(path, f'provider "{name}" has no base URL for {wire_format}')
    own = {wire_format: FORMATS[wire_format].own_provider for wire_format in WIRE_FORMATS}
    implied = {
        wire_format: names[0] if len(names) == 1 else own[wire_format]
        for wire_format, names in speakers.items()
        if len(names) == 1 or own.get(wire_format) in names
    }
    defaults = {**implied, **config.default_providers}
    return dataclasses.replace(config, default_providers=MappingProxyType(defaults))


def _check_models(document: Document, config: Config) -> None:
    """Every target must name a provider, and one that can be used."""
    models = {} if config.models is BROKEN else config.models
    for alias, targets in models.items():
        for index, target in enumerate(() if targets is BROKEN else targets):
            path: Path = ("models", alias, index)
            name = "" if target is BROKEN else target.partition("/")[0]
            if name and name not in config.providers:
                document.problem(path, _dangling(name, config))
            elif name and document.sound(("providers", name)) and not _is_usable(document, config, name):
                document.problem(
                    path,
                    f'provider "{name}" has no keys, so it gets no credentials and cannot be used;'
                    " give it keys, or is_key_less: true if it wants none",
                )


def _check_grants(document: Document, config: Config) -> None:
    """Virtual keys, teams and customers: whom they name, and what their limits need."""
    keys_of = config.key_names()
    groups: dict[str, Mapping[str, Any]] = {
        "customers": config.customers,
        "teams": config.teams,
        "virtual_keys": config.virtual_keys,
    }
    held: dict[bytes, str] = {}
    for place, group in groups.items():
        for name, holds in {} if group is BROKEN else group.items():
            path: Path = (place, name)
            if holds is BROKEN:
                continue
            grants.check(document, path, holds, keys_of, priced=config.prices is not None)
            for member, others in (("team_id", "teams"), ("customer_id", "customers")):
                wanted, known = getattr(holds, member, None), groups[others]
                if BROKEN not in (wanted, known) and wanted is not None and wanted not in known:
                    document.problem((*path, member), values.dangling(member[:-3], wanted, known))
            if config.store is None and grants.has_limits(holds):
                document.problem(path, "has limits, and they need a store (store: sqlite:PATH)")
            value = getattr(holds, "value", BROKEN)
            if value is not BROKEN and value in held:
                document.problem((*path, "value"), f'is the same as that of "{printable(held[value])}"')
            elif value is not BROKEN:
                held[value] = name


def _check_jobs(document: Document, config: Config) -> None:
    """Jobs and who is told of them, as far as they need each other and a store."""
    settings = config.jobs
    if config.webhooks and config.store is None:
        document.problem(("webhooks",), "tell of jobs, and those need a store (store: sqlite:PATH)")
    if settings is BROKEN or BROKEN in (settings.result_ttl, settings.max_result_ttl):
        return
    if settings.result_ttl > settings.max_result_ttl:
        wrong = f"more than max_result_ttl, which is {settings.max_result_ttl}"
        document.problem(("jobs", "result_ttl"), wrong)


def _is_usable(document: Document, config: Config, name: str) -> bool:
    """Whether a target of the provider can be used, as far as what is sound tells."""
    provider = config.providers[name]
    if config.default_providers is BROKEN:
        return True
    meant = any(not document.sound(("default_providers", wire_format)) for wire_format in provider.base_urls)
    return meant or bool(provider.keys) or provider.is_key_less or name in config.default_providers.values()


def _dangling(name: str, config: Config) -> str:
    return values.dangling("provider", name, config.providers)
