"""The local dev proxy: the configuration that there is without a file.

Facts
  - The variables are those that the providers' own SDKs read; of two, the first that is set counts.

Rules
  1. A provider has a key of its own where the environment has one. The wire formats' own providers are there
     for the client's credentials, too; the others want a key, and are named when there is none.

Not here: what a config means (`config`), which providers are known (`known`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from . import known, values
from .config import Config, ConfigError, Key, Problem, Provider
from .formats import FORMATS
from .providers import BedrockKeyConfig

_REGION = ("AWS_REGION", "AWS_DEFAULT_REGION")


def local_config(environ: Mapping[str, str], *, can_sign: bool = False) -> Config:
    """The local dev proxy: the known providers, each with a key from the first of its variables that is set.

    `can_sign`: where a region of AWS is set, Bedrock is asked with the credentials that AWS's SDKs find.
    Raises `ConfigError` on a key unfit for a header, or a region that is none.
    """
    own = {form.own_provider: form.name for form in FORMATS.values()}
    providers: dict[str, Provider] = {}
    problems: list[Problem] = []
    for name, found in known.PROVIDERS.items():
        try:
            keys = _keys(environ, found)
            region = _region(environ) if "{region}" in "".join(found.base_urls.values()) else None
        except ValueError as error:
            problems.append(Problem(f"providers.{name}.keys[0].value", 0, str(error)))
            continue
        if region == "":
            # Its address is not known.
            continue
        if region and not keys and can_sign:
            keys = (Key("aws", bedrock_key_config=BedrockKeyConfig(region)),)
        if found.base_urls:
            urls = {form: url.replace("{region}", region or "") for form, url in found.base_urls.items()}
            providers[name] = Provider(
                name, MappingProxyType(urls), keys, found.is_key_less and not keys, bearers=found.bearers
            )
    if problems:
        raise ConfigError(problems)
    defaults = {form: name for name, form in own.items() if name in providers}
    return Config(providers=MappingProxyType(providers), default_providers=MappingProxyType(defaults))


def _keys(environ: Mapping[str, str], found: known.Known) -> tuple[Key, ...]:
    variable = next((name for name in found.variables if environ.get(name)), None)
    return () if variable is None else (Key(variable, values.checked(environ[variable], variable)),)


def _region(environ: Mapping[str, str]) -> str:
    """The region of AWS that the environment names; empty if it names none."""
    named = next((environ[name] for name in _REGION if environ.get(name)), "")
    return values.region(named) if named else ""
