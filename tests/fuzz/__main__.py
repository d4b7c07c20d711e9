"""Fuzz one target: ``python tests/fuzz TARGET PLACE... [-OPTION=VALUE]...``

TARGET is ``scan``, ``stream`` or ``response``: modules here whose `check` takes bytes and raises when what
they come to is wrong. For an hour, keeping in a directory what reaches new code::

    mkdir /tmp/found
    python tests/fuzz scan /tmp/found -max_total_time=3600

An input that fails is written to ``crash-…`` (``-artifact_prefix=PATH/`` says where). Given as the PLACE, it
is tried once more. The seeds in ``corpus/TARGET`` are read with every directory. This alone writes them: it
adds the smallest inputs that reach code which no seed reaches::

    python tests/fuzz scan tests/fuzz/corpus/scan /tmp/found -merge=1 -use_counters=0

Facts
  - With atheris every branch of the proxy is watched, and of the strict readers that it is compared with. An
    input that takes a new one is kept and varied further. The rest is LLVM's libFuzzer, with its options
    (https://llvm.org/docs/LibFuzzer.html). There are wheels for Linux on x86-64.
  - Everywhere else `plain` varies the seeds at random. It knows the options that matter most.
"""

from __future__ import annotations

import importlib
import shlex
import sys
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent

DEFAULTS = ("-max_len=1024", "-timeout=10", "-mutate_depth=1")
"""After more than one change at a time too few inputs are left that anyone would accept."""


def main(name: str, arguments: list[str]) -> None:
    # Behind PYTHONPATH, so that a changed copy of the proxy can be fuzzed as well.
    sys.path[0] = str(HERE.parent)
    sys.path.append(str(HERE.parent.parent))
    options = [*DEFAULTS, *(argument for argument in arguments if argument.startswith("-"))]
    places = [argument for argument in arguments if not argument.startswith("-")]
    if "-merge=1" not in options and all(map(Path.is_dir, map(Path, places))):
        places.append(str(HERE / "corpus" / name))
    try:
        import atheris
    except ModuleNotFoundError:
        from fuzz import plain

        target = importlib.import_module(f"fuzz.{name}")
        sys.exit(plain.fuzz(target.check, target.WORDS, places, options))
    from fuzz.mutate import mutated

    with atheris.instrument_imports(include=["proxy", "fuzz"], exclude=[f"fuzz.{name}"]):
        target = importlib.import_module(f"fuzz.{name}")

    def mutator(data: bytes, limit: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.3:
            changed: bytes = atheris.Mutate(data, limit)
            return changed
        return mutated(data, target.WORDS, random)[:limit]

    # libFuzzer runs this again, through a shell, when it merges.
    program = shlex.join([sys.executable, str(HERE), name])
    atheris.Setup([program, *options, *places], target.check, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("scan", "stream", "response"):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
