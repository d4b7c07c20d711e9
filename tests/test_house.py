"""The house of modules: imports go one way, and the map in `proxy.__doc__` is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import proxy

HOUSE = Path(proxy.__file__).parent
FLOORS = ("Pure", "Path", "House")
ROOMS = sorted(
    [path.stem for path in HOUSE.glob("*.py") if path.stem != "__init__"]
    + [path.parent.name for path in HOUSE.glob("*/__init__.py")]
)
IMPURE = {
    *("asyncio", "time", "random", "socket", "ssl", "os", "logging", "aiohttp", "threading", "secrets"),
    *("mmap", "fcntl", "sqlite3", "pathlib", "subprocess"),
}


def floor_of(room: str) -> int:
    """The floor on which the map of the package lists a room."""
    assert proxy.__doc__ is not None
    parts = re.split(r"^(Pure|Path|House):", proxy.__doc__, flags=re.M)
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        text = text.partition("The rules")[0]
        if re.search(rf"\s{{2}}{re.escape(room)}\s{{2}}", text):
            return FLOORS.index(name)
    pytest.fail(f"{room} is not on the map in proxy/__init__.py")


def imports_of(room: str) -> tuple[set[str], set[str]]:
    """The rooms, and the top-level packages from outside, that a room imports."""
    inside: set[str] = set()
    outside: set[str] = set()
    files = sorted((HOUSE / room).glob("*.py")) or [HOUSE / f"{room}.py"]
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8")))):
        if isinstance(node, ast.Import):
            outside.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == len(files[0].relative_to(HOUSE).parts):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            inside.update(name for name in names if name in ROOMS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("proxy."):
            inside.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.ImportFrom) and not node.level:
            outside.add((node.module or "").partition(".")[0])
    return inside, outside


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room: str) -> None:
    """A room imports only rooms of its own floor or of one below."""
    inside, _ = imports_of(room)
    assert [other for other in inside if floor_of(other) > floor_of(room)] == []


@pytest.mark.parametrize("room", [room for room in ROOMS if floor_of(room) == 0])
def test_a_pure_room_has_no_clock_no_loop_and_no_io(room: str) -> None:
    """A pure room imports nothing that waits, tells the time, draws lots or touches the machine."""
    _, outside = imports_of(room)
    assert outside & IMPURE == set()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_names_the_rooms_that_it_imports(room: str) -> None:
    """An import of the whole package would go past the two tests above."""
    _, outside = imports_of(room)
    assert "proxy" not in outside


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_can_be_entered_alone(room: str) -> None:
    """Each module imports by itself, in a fresh interpreter, and prints nothing."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import proxy.{room}"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")


def test_no_room_is_called_by_its_lack_of_a_name() -> None:
    """There is no room for everything."""
    assert set(ROOMS) & {"utils", "util", "helpers", "common", "manager", "misc", "base"} == set()
