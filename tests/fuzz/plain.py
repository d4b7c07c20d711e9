"""A plain fuzzer for where atheris is not: it varies the seeds at random, without a look at what they reach.

It knows libFuzzer's options ``-runs``, ``-max_total_time``, ``-seed``, ``-max_len`` and ``-artifact_prefix``,
and ignores others.
"""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from fuzz.mutate import mutated


def fuzz(
    check: Callable[[bytes], None], words: Sequence[bytes], places: Sequence[str], options: Sequence[str]
) -> int:
    """Run `check`; the exit status: 0 when all held, 77 when an input failed, as libFuzzer has it."""
    given = dict(option.removeprefix("-").partition("=")[::2] for option in options)
    print("INFO: atheris is not installed: the seeds are varied at random", flush=True)
    done = 0
    for data in _inputs(words, [Path(place) for place in places], given):
        try:
            check(data)
        except Exception:
            traceback.print_exc()
            crash = given.get("artifact_prefix", "./") + "crash-" + hashlib.sha256(data).hexdigest()[:40]
            Path(crash).write_bytes(data)
            print(f"Test unit written to {crash}")
            return 77
        done += 1
    print(f"Done {done} runs")
    return 0


def _inputs(words: Sequence[bytes], places: Sequence[Path], given: dict[str, str]) -> Iterator[bytes]:
    """The files that were named; or all of the seeds, and then variations of them until the limit."""
    if any(place.is_file() for place in places):
        yield from (place.read_bytes() for place in places)
        return
    seeds = [path.read_bytes() for place in places for path in sorted(place.iterdir())]
    yield from seeds
    random = Random(int(given.get("seed", "0")))
    runs, seconds = int(given.get("runs", "-1")), int(given.get("max_total_time", "0"))
    done, end = len(seeds), time.monotonic() + seconds
    while (runs < 0 or done < runs) and (not seconds or time.monotonic() < end):
        yield mutated(random.choice(seeds), words, random)[: int(given["max_len"])]
        done += 1
