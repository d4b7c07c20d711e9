"""Credentials that AWS' default chain finds: environment, files, programs, roles of containers and machines.

Rules
  1. The services that hand out credentials run in this test's own event loop: if the proxy's loop waited for
     botocore, they could not answer, and nothing would be signed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from bedrock_signatures import Credentials, Signed, check
from running import LogText, StartUpstream
from scripted import Conn, Request, Step, answer
from test_signing import received, request

from proxy import signing
from proxy.config import Key
from proxy.errors import ProxyError, Source
from proxy.providers import BedrockKeyConfig
from proxy.signing import Signer

ENVIRONMENT = Credentials("sk-test-access-environment", "sk-test-secret-environment")
FILE = Credentials("sk-test-access-file", "sk-test-secret-file")
PROFILE = Credentials("sk-test-access-profile", "sk-test-secret-profile", "sk-test-token-profile")
PROCESS = Credentials("sk-test-access-process", "sk-test-secret-process", "sk-test-token-process")
FIRST = Credentials("sk-test-access-first", "sk-test-secret-first", "sk-test-token-first")
SECOND = Credentials("sk-test-access-second", "sk-test-secret-second", "sk-test-token-second")

FILES = f"""
[default]
aws_access_key_id = {FILE.access_key}
aws_secret_access_key = {FILE.secret_key}
[named]
aws_access_key_id = {PROFILE.access_key}
aws_secret_access_key = {PROFILE.secret_key}
aws_session_token = {PROFILE.token}
[half]
aws_access_key_id = {PROFILE.access_key}
[folded]
aws_access_key_id = {PROFILE.access_key}
aws_secret_access_key = {PROFILE.secret_key}
aws_session_token = {PROFILE.token}
  x-injected: 1
"""


@pytest.fixture(autouse=True)
def _nothing_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There is nothing in the environment, in files and on the network, but what a test puts there."""
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(autouse=True)
def _threads_end() -> Iterator[None]:
    """No thread that looks for credentials is left behind."""
    yield
    for thread in looking():
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def files(tmp_path: Path) -> None:
    """The shared files, as `aws configure` writes them."""
    (tmp_path / "credentials").write_text(FILES)


def key(profile: str | None = None, region: str = "us-east-1", name: str = "main") -> Key:
    return Key(name, bedrock_key_config=BedrockKeyConfig(region, profile=profile))


async def signed(signer: Signer, asked: Key | None = None) -> Signed:
    """Who signed; the signature must be good."""
    everybody = (ENVIRONMENT, FILE, PROFILE, PROCESS, FIRST, SECOND)
    made = received(await signer.sign(asked or key(), request()))
    return check(made, {each.access_key: each for each in everybody})


async def refused(signer: Signer, asked: Key | None = None) -> str:
    """What is said where there are no credentials."""
    with pytest.raises(ProxyError) as caught:
        await signer.sign(asked or key(name="the key"), request())
    error = caught.value
    assert (error.status, error.source, error.event) == (502, Source.UPSTREAM, "401")
    assert "sk-test" not in error.message
    assert "Whoever runs the proxy must look" in error.message
    return error.message


def looking() -> list[threading.Thread]:
    """The threads that look for credentials."""
    return [thread for thread in threading.enumerate() if thread.name == "credentials"]


async def found() -> None:
    """Returns when nobody looks for credentials any more."""
    for thread in looking():
        await asyncio.to_thread(thread.join, 10)


def printed_by_program(*, lasts: timedelta = timedelta(hours=6)) -> str:
    """What a program prints that hands out credentials."""
    document = {
        "Version": 1,
        "AccessKeyId": PROCESS.access_key,
        "SecretAccessKey": PROCESS.secret_key,
        "SessionToken": PROCESS.token,
        "Expiration": (datetime.now(UTC) + lasts).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return json.dumps(document)


def handed_out(credentials: Credentials, *, lasts: timedelta = timedelta(hours=6)) -> bytes:
    """The answer of what hands out the credentials of a role."""
    document = {
        "Code": "Success",
        "Type": "AWS-HMAC",
        "AccessKeyId": credentials.access_key,
        "SecretAccessKey": credentials.secret_key,
        "Token": credentials.token,
        "Expiration": (datetime.now(UTC) + lasts).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return answer(body=json.dumps(document).encode())


async def test_environment(monkeypatch: pytest.MonkeyPatch, files: None, logged: LogText) -> None:
    """The environment goes before the shared files; nothing of it is logged."""
    logging.getLogger("tests").debug("something is")
    signer = Signer()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ENVIRONMENT.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ENVIRONMENT.secret_key)
    assert (await signed(signer)).access_key == ENVIRONMENT.access_key
    assert "something is" in logged.text
    assert "sk-test" not in logged.text


async def test_files_and_profiles(monkeypatch: pytest.MonkeyPatch, files: None) -> None:
    """The default profile of the shared files, and those that keys name, whatever the environment has."""
    signer = Signer()
    assert (await signed(signer)).access_key == FILE.access_key
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ENVIRONMENT.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ENVIRONMENT.secret_key)
    said = await signed(signer, key("named", "eu-west-1"))
    assert (said.access_key, said.region) == (PROFILE.access_key, "eu-west-1")


async def test_the_environment_names_the_profile(monkeypatch: pytest.MonkeyPatch, files: None) -> None:
    """AWS_PROFILE counts for keys that name none."""
    monkeypatch.setenv("AWS_PROFILE", "named")
    assert (await signed(Signer())).access_key == PROFILE.access_key


async def test_found_once(files: None, tmp_path: Path) -> None:
    """What was found is kept; another config looks again."""
    signer = Signer()
    await signed(signer)
    (tmp_path / "credentials").unlink()
    assert (await signed(signer)).access_key == FILE.access_key
    assert "has none" in await refused(Signer())


@pytest.mark.parametrize(
    ("profile", "said", "logs"),
    [
        (None, "AWS' default chain has none; the key may have an access_key", "none found"),
        ("nobody", "its profile could not be asked", "ProfileNotFound"),
        ("half", "its profile could not be asked", "PartialCredentialsError"),
        ("folded", "what its profile has is none", "unfit"),
    ],
)
async def test_none_to_be_had(
    logged: LogText, tmp_path: Path, profile: str | None, said: str, logs: str
) -> None:
    """The message names the key and says where they were looked for; the log says once what went wrong."""
    if profile is not None:
        (tmp_path / "credentials").write_text(FILES)
    signer = Signer()
    message = await refused(signer, key(profile, name="the key"))
    assert "for its key 'the key'" in message
    assert said in message
    assert await refused(signer, key(profile, name="the key")) == message
    assert logged.text.count(f": {logs}\n") == 1
    assert "sk-test" not in logged.text


async def test_none_are_looked_for_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: None
) -> None:
    """Not at once, so that nobody waits for what just failed; but then they are."""
    monkeypatch.setattr(signing, "RETRY_SECONDS", 60.0)
    (tmp_path / "credentials").rename(tmp_path / "elsewhere")
    signer = Signer()
    await refused(signer)
    (tmp_path / "elsewhere").rename(tmp_path / "credentials")
    await refused(signer)
    monkeypatch.setattr(signing, "RETRY_SECONDS", 0.0)
    soon = Signer()
    (tmp_path / "credentials").rename(tmp_path / "elsewhere")
    await refused(soon)
    (tmp_path / "elsewhere").rename(tmp_path / "credentials")
    assert (await signed(soon)).access_key == FILE.access_key


@pytest.fixture
def container(upstream: StartUpstream, monkeypatch: pytest.MonkeyPatch) -> object:
    """Starts what hands out the role of a container: ``await container(*steps)``."""

    async def start(*steps: Step) -> object:
        service = await upstream(*steps)
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{service.url}/role")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "sk-test-container")
        return service

    return start


async def test_role_of_a_container(container, logged: LogText) -> None:  # type: ignore[no-untyped-def]
    """Its service is asked once, with its token, for all who wait; nothing of it is logged."""
    service = await container(handed_out(FIRST))
    signer = Signer()
    both = key(name="one"), key(name="two")
    said = await asyncio.gather(*(signed(signer, each) for each in both * 10))
    assert {each.access_key for each in said} == {FIRST.access_key}
    assert [each.target for each in service.requests] == [b"/role"]
    assert service.requests[0].header("authorization") == b"sk-test-container"
    assert "sk-test" not in logged.text


async def test_who_leaves_takes_nothing_along(container) -> None:  # type: ignore[no-untyped-def]
    """The first who asks leaves; the others get what it had asked for, and nobody asks again."""
    came, go_on = asyncio.Event(), asyncio.Event()

    async def slow(conn: Conn, _: Request) -> None:
        came.set()
        await go_on.wait()
        await conn.send(handed_out(FIRST))

    service = await container(slow)
    signer = Signer()
    first, second = (asyncio.create_task(signed(signer)) for _ in range(2))
    await came.wait()
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    assert not second.done()
    go_on.set()
    assert (await second).access_key == FIRST.access_key
    assert len(service.requests) == 1


async def test_renewed_while_the_old_ones_are_good(  # type: ignore[no-untyped-def]
    container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials near their end go on signing until new ones are there, and nobody waits for those."""
    monkeypatch.setattr(signing, "RETRY_SECONDS", 0.0)
    go_on = asyncio.Event()

    async def slow(conn: Conn, _: Request) -> None:
        await go_on.wait()
        await conn.send(handed_out(SECOND))

    ending = handed_out(FIRST, lasts=timedelta(minutes=4))
    # botocore itself asks again at once for what ends soon.
    service = await container(ending, ending, slow)
    signer = Signer()
    for _ in range(5):
        assert (await signed(signer)).access_key == FIRST.access_key
    await service.received(3)
    assert (await signed(signer)).access_key == FIRST.access_key
    go_on.set()
    await found()
    assert (await signed(signer)).access_key == SECOND.access_key
    assert len(service.requests) == 3


async def test_a_renewal_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: LogText) -> None:
    """Old credentials go on signing, and the log says so without what the program said."""
    monkeypatch.setattr(signing, "RETRY_SECONDS", 0.0)
    printed = tmp_path / "printed"
    failing = f"sh -c 'cat {printed} || {{ echo sk-test-said >&2; exit 1; }}'"
    (tmp_path / "config").write_text(f"[profile failing]\ncredential_process = {failing}\n")
    printed.write_text(printed_by_program(lasts=timedelta(minutes=4)))
    signer = Signer()
    assert (await signed(signer, key("failing"))).access_key == PROCESS.access_key
    printed.unlink()
    for _ in range(2):
        assert (await signed(signer, key("failing"))).access_key == PROCESS.access_key
        await found()
    assert "AWS credentials of profile 'failing', us-east-1: CredentialRetrievalError" in logged.text
    assert "sk-test" not in logged.text


async def test_credentials_that_have_ended(container) -> None:  # type: ignore[no-untyped-def]
    """A service that hands out what has ended hands out none."""
    ended = handed_out(FIRST, lasts=-timedelta(minutes=1))
    await container(ended, ended)
    assert "could not be asked" in await refused(Signer())


async def test_role_of_a_machine(upstream: StartUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """The instance's own service is asked last, in its second version."""
    service = await upstream(
        answer(headers=[(b"x-aws-ec2-metadata-token-ttl-seconds", b"21600")], body=b"sk-test-session"),
        answer(body=b"the-role"),
        handed_out(SECOND),
    )
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url)
    # It is 1 s, which a slow machine may take.
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "30")
    assert (await signed(Signer())).access_key == SECOND.access_key
    assert [(each.method, each.target) for each in service.requests] == [
        ("PUT", b"/latest/api/token"),
        ("GET", b"/latest/meta-data/iam/security-credentials/"),
        ("GET", b"/latest/meta-data/iam/security-credentials/the-role"),
    ]


ASSUMED = f"""<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
<Credentials><AccessKeyId>{SECOND.access_key}</AccessKeyId>
<SecretAccessKey>{SECOND.secret_key}</SecretAccessKey><SessionToken>{SECOND.token}</SessionToken>
<Expiration>2100-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""
DENIED = """<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>
<Code>AccessDenied</Code><Message>sk-test-not-said</Message></Error></ErrorResponse>"""


async def test_a_role_that_is_assumed(
    upstream: StartUpstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: None, logged: LogText
) -> None:
    """A profile's role is asked for in the key's own region; a refusal is logged by its name."""
    xml = [(b"Content-Type", b"text/xml")]
    service = await upstream(answer(200, xml, ASSUMED.encode()), answer(403, xml, DENIED.encode()))
    role = "role_arn = arn:aws:iam::123456789012:role/bedrock\nsource_profile = default"
    (tmp_path / "config").write_text(f"[profile assuming]\n{role}\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", service.url)
    said = await signed(Signer(), key("assuming", "eu-west-3"))
    assert (said.access_key, said.region) == (SECOND.access_key, "eu-west-3")
    asked = check(service.requests[0], {FILE.access_key: FILE})
    assert (asked.region, asked.service) == ("eu-west-3", "sts")
    assert "could not be asked" in await refused(Signer(), key("assuming", "eu-west-3"))
    assert "AWS credentials of profile 'assuming', eu-west-3: ClientError (AccessDenied)\n" in logged.text
    assert "sk-test" not in logged.text


async def test_a_program_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are refused after a while, and neither the loop nor the proxy's end waits for it.

    When it answers at last, its credentials sign.
    """
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "config").write_text(f"[profile slow]\ncredential_process = cat {pipe}\n")
    monkeypatch.setattr(signing, "PATIENCE", 0.2)
    signer = Signer()
    assert "has not answered within 0.2 s" in await refused(signer, key("slow"))
    (thread,) = looking()
    assert thread.daemon
    # Whoever comes now does not wait once more.
    monkeypatch.setattr(signing, "PATIENCE", 60.0)
    await refused(signer, key("slow"))
    await asyncio.to_thread(pipe.write_text, printed_by_program())
    await found()
    assert (await signed(signer, key("slow"))).access_key == PROCESS.access_key
