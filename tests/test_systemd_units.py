"""The units in systemd/: systemd finds no fault in them, and they agree with the config and the command.

Facts
  - ``systemd-analyze`` needs no booted systemd for this; Debian's package ``systemd`` has it.
  - ``verify`` wants every command to exist. It gets copies in which the virtual environment is the one that
    runs the tests; nothing else differs.
  - A line that ends in a backslash goes on; a list grows with each line of its key (systemd.syntax(7)).

Not here: the notify protocol and the passed sockets.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.__main__ import _parser

ROOT = Path(__file__).parents[1]
SERVICE = ROOT / "systemd" / "verbatim-proxy@.service"
SOCKET = ROOT / "systemd" / "verbatim-proxy@.socket"
NGINX = (ROOT / "conf" / "nginx.conf").read_text("utf-8")
PRODUCTION = (ROOT / "conf" / "production.yaml").read_text("utf-8")
CONFIG: dict[str, Any] = yaml.safe_load(PRODUCTION)

PREFIX = "/opt/verbatim/bin/"
"""Where the service expects the command."""

MOST_EXPOSURE = 15
"""In tenths, as ``--threshold`` takes it."""


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``systemd-analyze``; its output, errors included, and its exit code."""
    tool = shutil.which("systemd-analyze")
    assert tool is not None, "systemd-analyze is missing: install Debian's package systemd"
    return subprocess.run(
        [tool, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )


def settings(unit: Path, section: str) -> dict[str, list[str]]:
    """The values of each key of a section, in their order."""
    found: dict[str, list[str]] = {}
    current = ""
    for line in unit.read_text("utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        elif current == section and line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def the(unit: Path, section: str, key: str) -> str:
    """The one value of a key."""
    (value,) = settings(unit, section)[key]
    return value


def in_bytes(size: str) -> int:
    return int(size[:-1]) << {"M": 20, "G": 30}[size[-1]]


def arguments(line: str) -> list[str]:
    """What a command line of the service gives to our command."""
    words = shlex.split(line)
    return words[words.index(f"{PREFIX}verbatim-proxy") + 1 :]


@pytest.fixture
def copies(tmp_path: Path) -> list[Path]:
    """The units, with the command of this environment."""
    scripts = sysconfig.get_path("scripts")
    for unit in (ROOT / "systemd").glob("*@.*"):
        (tmp_path / unit.name).write_text(unit.read_text("utf-8").replace(PREFIX, f"{scripts}/"))
    copied = sorted(tmp_path.iterdir())
    assert [copy.name for copy in copied] == [SERVICE.name, SOCKET.name]
    return copied


def test_systemd_has_nothing_to_say_about_the_units(copies: list[Path]) -> None:
    """No unknown key, no value that is ignored, no command that is not there: no output at all."""
    result = analyze("verify", *copies)
    assert (result.stdout, result.returncode) == ("", 0)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("WatchdogSec=", "WatchdogSecs="),
        ("PrivateUsers=yes", "PrivateUsers=yess"),
        ("/verbatim-proxy serve", "/verbatim-proxi serve"),
    ],
    ids=["key", "value", "command"],
)
def test_systemd_objects_to_a_wrong(copies: list[Path], right: str, wrong: str) -> None:
    """Its silence means something: it names a misspelt key or value, and a command that is not there."""
    service = copies[0]
    text = service.read_text("utf-8")
    assert right in text
    service.write_text(text.replace(right, wrong))
    assert re.search(r"WatchdogSecs|yess|verbatim-proxi", analyze("verify", service).stdout)


def test_the_service_is_hardened() -> None:
    """Its exposure is at most 1.5, by systemd's own count, where a service without any hardening has 9.6."""
    result = analyze("security", "--no-pager", "--offline=true", f"--threshold={MOST_EXPOSURE}", SERVICE)
    assert result.returncode == 0, result.stdout


def test_nginx_connects_where_the_sockets_listen() -> None:
    """Each of nginx's servers is the socket of an instance, no two are the same, and nginx may connect."""
    pattern = the(SOCKET, "Socket", "ListenStream")
    servers = re.findall(r"^\s*server\s+unix:([^;\s]+)", NGINX, re.MULTILINE)
    instances = [Path(server).stem for server in servers]
    assert servers == [pattern.replace("%i", instance) for instance in instances]
    assert len(set(instances)) == len(instances) > 1
    # Without a second name, nginx's group is the one of the user's name.
    assert re.findall(r"^user ([^;]*);", NGINX, re.MULTILINE) == [the(SOCKET, "Socket", "SocketGroup")]
    assert the(SOCKET, "Socket", "SocketMode") == "0660"


def test_the_config_listens_in_the_directory_of_the_sockets() -> None:
    """Without a socket unit too, a worker listens where nginx may look."""
    directory = Path(the(SOCKET, "Socket", "ListenStream")).parent
    (listen,) = CONFIG["listen"]
    assert Path(listen.removeprefix("unix:")).parent == directory


def test_every_key_of_the_config_is_handed_over() -> None:
    """Each ``file:NAME`` of the config is a credential of that name, and there is no other."""
    wanted = re.findall(r"^[^#\n]*\bfile:([^/\s]\S*)", PRODUCTION, re.MULTILINE)
    handed = settings(SERVICE, "Service")["LoadCredential"]
    assert handed == [f"{name}:/etc/verbatim/{name}" for name in wanted]
    assert wanted


def test_the_command_understands_what_the_service_runs() -> None:
    """The start serves, a reload checks, and both read the same config."""
    start, check = the(SERVICE, "Service", "ExecStart"), settings(SERVICE, "Service")["ExecReload"][0]
    serving, checking = (_parser().parse_args(arguments(line)) for line in (start, check))
    assert (serving.command, checking.command) == ("serve", "check")
    assert serving.config == checking.config == "/etc/verbatim/production.yaml"


def test_a_reload_checks_before_it_signals() -> None:
    """systemd runs the lines in their order, and stops at the first that fails."""
    check, signal = settings(SERVICE, "Service")["ExecReload"]
    assert arguments(check)[0] == "check"
    assert shlex.split(signal) == ["kill", "-HUP", "$MAINPID"]


def test_a_drain_ends_before_it_is_killed() -> None:
    """Twice the drain fits, for what comes before and after it on a busy machine."""
    assert int(the(SERVICE, "Service", "TimeoutStopSec")) > 2 * CONFIG["drain_timeout"]


def test_memory_has_room_for_all_bodies() -> None:
    """A body takes up to twice its size while it is put together, and the rest needs room as well."""
    high, most = (in_bytes(the(SERVICE, "Service", key)) for key in ("MemoryHigh", "MemoryMax"))
    assert 2 * CONFIG["max_buffered_bytes"] < high < most


def test_all_workers_are_the_same_user() -> None:
    """A dynamic user without a name is another one for each instance, and they share a state directory."""
    service = settings(SERVICE, "Service")
    assert (service["DynamicUser"], service["User"]) == (["yes"], ["verbatim"])
    assert "%" not in the(SERVICE, "Service", "StateDirectory")
