"""Signatures of AWS: a request is signed anew on its way upstream, with credentials of ours.

Facts
  - Signature Version 4 covers the method, the path, the query, the SHA-256 of the body, and the fields that
    it names: ``host``, ``content-type`` and every ``x-amz-*`` at least (IAM User Guide, "Create a signed AWS
    API request"). The path is percent-encoded once more for it: ``%3A`` on the wire is ``%253A`` under it.
  - ``x-amz-content-sha256`` says that SHA-256. Only S3 demands it, but AWS' SDK for JavaScript sends it
    everywhere. With it botocore does not have to see the body.
  - The service is called ``bedrock`` (botocore's model of bedrock-runtime), at the hosts ``bedrock-mantle.*``
    ``bedrock-mantle`` (anthropic SDK 2.12.0, lib/bedrock/_mantle.py).
  - botocore blocks when it looks for credentials: it reads files, asks an address of the machine's network
    that may not answer, or runs a program that may hang. Within 10 minutes of their end, and not before, it
    fails where it cannot renew them.
  - A machine has new credentials for its role five minutes before the old ones end (EC2 User Guide, instance
    metadata).

Rules
  1. botocore signs; what it signs is what goes out. Nothing of the head is changed, fields are added.
  2. The loop does not wait for botocore. Credentials of one profile are looked for once at a time, by a
     thread that nobody waits for at the end; those that are still good are used meanwhile.
  3. botocore's texts hold secrets: they are neither answered nor logged, only the names of its errors are.

Not here: which key is used (`keys`), what becomes of a client's own signature (`headers`), bearer keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from .config import Key
from .errors import ProxyError, Source
from .providers import BedrockKeyConfig
from .sending import SEND_BYTES, Request

PATIENCE = 10.0
"""How long looking for credentials may keep requests waiting, in seconds."""

RENEW_SECONDS = 300
"""How long before their end credentials are renewed."""

RETRY_SECONDS = 5.0
"""How long after an answer botocore is not asked again."""

NO_CREDENTIALS = "no_credentials"
"""What an attempt came to for which there were none."""

_MANTLE = "bedrock-mantle"

_SIGNED = re.compile(rb"\r\n(host|content-type|x-amz-[^:\r]*):[ \t]*([^\r]*)", re.I)
"""A field that is signed."""

_PLAIN = re.compile(rb"[\t -~]*")
"""What AWS and botocore read alike."""

_VISIBLE = re.compile("[!-~]+")

_NAME = re.compile("[A-Za-z.]{1,100}")

logger = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


class NoCredentials(ProxyError):
    """There are none for a key. The next one is taken, as if the provider had refused it."""

    def __init__(self, key: Key, lack: str) -> None:
        super().__init__(
            502,
            f"The proxy has no AWS credentials for its key {key.name!r}: {lack}. Whoever runs the proxy must"
            " look at them.",
            source=Source.UPSTREAM,
            event="401",
        )


class Signer:
    """Signs requests. One per config, and only where a key of it has to sign: it imports botocore."""

    def __init__(self, now: Callable[[], datetime] = _now) -> None:
        """Raises RuntimeError when botocore is missing."""
        try:
            from botocore.auth import SigV4Auth  # type: ignore[import-untyped]
            from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
            from botocore.credentials import ReadOnlyCredentials  # type: ignore[import-untyped]
            from botocore.session import Session  # type: ignore[import-untyped]
        except ModuleNotFoundError as error:
            if error.name != "botocore":
                raise
            raise RuntimeError(
                "a key has a bedrock_key_config, and the package that signs for AWS is missing:"
                " pip install 'verbatim-proxy[bedrock]'"
            ) from None
        # It logs what services and programs say that hand out credentials; for who debugs, all of it.
        logging.getLogger("botocore").setLevel(logging.CRITICAL)
        self._signature = SigV4Auth
        self._request = AWSRequest
        self._fixed = ReadOnlyCredentials
        self._session = Session
        self._now = now
        self._chains: dict[tuple[str | None, str], Chain] = {}

    async def sign(self, key: Key, request: Request) -> Request:
        """`request` with the fields of a signature by `key`.

        Raises `NoCredentials`, and `ProxyError` 400 for what cannot be signed.
        """
        body = request.body
        if body is not None and not isinstance(body, bytes | list):
            raise _unsigned("a body on this path is streamed")
        credentials = await self._credentials(key)
        digest = await _digest(body)
        return request._replace(
            head=request.head + self._fields(credentials, _config(key).region, request, digest)
        )

    async def _credentials(self, key: Key) -> Any:
        config = _config(key)
        if config.access_key is not None and config.secret_key is not None:
            token = config.session_token.reveal() if config.session_token is not None else None
            return self._fixed(config.access_key.reveal(), config.secret_key.reveal(), token)
        place = config.profile, config.region
        chain = self._chains.get(place)
        if chain is None:
            chain = self._chains[place] = Chain(lambda: self._find(*place), *place)
        held = await chain.credentials()
        if held is None:
            raise NoCredentials(key, chain.lack)
        return held

    def _find(self, profile: str | None, region: str) -> Any:
        """botocore's credentials of a profile, or of its default chain; None where there are none."""
        session = self._session(profile=profile)
        # A role that is assumed is asked for in this region.
        session.set_config_variable("region", region)
        return session.get_credentials()

    def _fields(self, credentials: Any, region: str, request: Request, digest: str) -> bytes:
        """The lines of the fields that sign `request`."""
        at = self._now().strftime("%Y%m%dT%H%M%SZ")
        ours = {"X-Amz-Date": at, "X-Amz-Content-SHA256": digest}
        if credentials.token:
            ours["X-Amz-Security-Token"] = credentials.token
        target = request.head.split(b" ", 2)[1]
        theirs = _SIGNED.findall(request.head)
        if not all(_PLAIN.fullmatch(part) for part in (target, *(value for _, value in theirs))):
            raise _unsigned("its path, or a field that AWS wants signed, holds other characters than ASCII's")
        # The host is in a field; that of the URL is not looked at.
        signed = self._request(request.method, "https://host" + target.decode(), ours)
        for name, value in theirs:
            signed.headers[name.decode()] = value.decode()
        signed.context["timestamp"] = at
        service = _MANTLE if request.origin.host.startswith(f"{_MANTLE}.") else "bedrock"
        by = self._signature(credentials, service, region)
        canonical = by.canonical_request(signed)
        signature = by.signature(by.string_to_sign(signed, canonical), signed)
        # It ends with the names of the fields, and the hash of the body.
        names = canonical.split("\n")[-2]
        ours["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={by.scope(signed)}, SignedHeaders={names}, Signature={signature}"
        )
        return "".join(f"{name}: {value}\r\n" for name, value in ours.items()).encode("latin-1")


class Chain:
    """The credentials that botocore finds in one place."""

    def __init__(self, find: Callable[[], Any], profile: str | None, region: str) -> None:
        """`find` may block."""
        self._find = find
        self._place = "its profile" if profile is not None else "AWS' default chain"
        self._log_name = f"{'the default chain' if profile is None else f'profile {profile!r}'}, {region}"
        self._found: Any = None
        """botocore's object, which can renew its credentials."""
        self._held: Any = None
        """A copy of the credentials, which does nothing."""
        self._asking: asyncio.Future[None] | None = None
        self._patience_ends = 0.0
        self._ask_from = 0.0
        self.lack = ""
        """Why there are none, for those who use the proxy."""

    async def credentials(self) -> Any:
        """Credentials that are good now; None when there are none."""
        loop = asyncio.get_running_loop()
        if self._asking is None and loop.time() >= self._ask_from and not self._last(RENEW_SECONDS):
            self._asking = loop.create_future()
            self._patience_ends = loop.time() + PATIENCE
            self.lack = f"{self._place} has not answered within {PATIENCE:g} s"
            # A thread of its own, for asyncio's are few, look up names, and are waited for at the end.
            threading.Thread(
                target=self._ask, args=(loop, self._asking), name="credentials", daemon=True
            ).start()
        if self._last(0):
            return self._held
        if self._asking is not None:
            await asyncio.wait((self._asking,), timeout=max(0.0, self._patience_ends - loop.time()))
        return self._held if self._last(0) else None

    def _last(self, seconds: int) -> bool:
        """Whether there are credentials that last so long."""
        if self._held is None:
            return False
        ends = getattr(self._found, "refresh_needed", None)
        return ends is None or not ends(seconds)

    def _ask(self, loop: asyncio.AbstractEventLoop, asking: asyncio.Future[None]) -> None:
        """Ask botocore, in the thread."""
        found, held, lack, failure = self._found, None, "", ""
        try:
            if found is None:
                found = self._find()
            if found is not None:
                held = found.get_frozen_credentials()
        except Exception as error:
            # Whatever botocore, and the file, program or service behind it, may raise.
            failure = _named(error)
            lack = f"{self._place} could not be asked for them"
        if held is None and not failure:
            failure = "none found"
            lack = f"{self._place} has none; the key may have an access_key and a secret_key instead"
        if held is not None and not all(
            isinstance(part, str) and _VISIBLE.fullmatch(part)
            for part in (held.access_key, held.secret_key, held.token or "-")
        ):
            held, failure = None, "unfit"
            lack = f"what {self._place} has is none"
        # A loop that has ended needs none any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._answered, loop, asking, found, held, lack, failure)

    def _answered(
        self,
        loop: asyncio.AbstractEventLoop,
        asking: asyncio.Future[None],
        found: Any,
        held: Any,
        lack: str,
        failure: str,
    ) -> None:
        self._asking = None
        self._ask_from = loop.time() + RETRY_SECONDS
        self.lack = lack
        self._found = found
        if held is not None:
            self._held = held
        else:
            logger.warning("AWS credentials of %s: %s", self._log_name, failure)
        asking.set_result(None)


def _config(key: Key) -> BedrockKeyConfig:
    if key.bedrock_key_config is None:
        raise AssertionError("a key that signs says with what")
    return key.bedrock_key_config


def _named(error: Exception) -> str:
    """The name of an error, and AWS' own for what a service of it refused."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    known = isinstance(code, str) and _NAME.fullmatch(code)
    return f"{type(error).__name__} ({code})" if known else type(error).__name__


async def _digest(body: bytes | list[memoryview] | None) -> str:
    """The SHA-256 of a body, in hexadecimal."""
    parts = body if isinstance(body, list) else (body or b"",)
    if sum(map(len, parts)) <= SEND_BYTES:
        return _sha256(parts)
    return await asyncio.to_thread(_sha256, parts)


def _sha256(parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _unsigned(why: str) -> ProxyError:
    return ProxyError(
        400,
        f"The request cannot be signed for this provider, as AWS wants it: {why}.",
        source=Source.DOWNSTREAM,
    )
