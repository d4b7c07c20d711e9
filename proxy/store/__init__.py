"""The store: the state that all workers share, behind `ports.Store` and `ports.JobStore`.

Rules
  1. A store is made without touching disk or network. It connects at its first use, and again by itself at
     the first use after a failure.
  2. Whatever the backend raises is a `StoreError`. After one, what was asked may have been done or not: the
     answer can be lost on its way back.
  3. After `close` a store raises `StoreError`, so that whoever is late opens nothing again.

Not here: what the counters, records and jobs mean (`limits`, `grants`, `job`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from proxy.ports import JobStore, Store


def open_store(url: str, password: str | None = None) -> Store:
    """The store at `url`, which `values.store` has checked.

    Raises RuntimeError when this machine lacks what it needs.
    """
    scheme, _, path = url.partition(":")
    # Only the backend in use is imported: `redis` is an extra, and costs 10 MB and a tenth of a second.
    if scheme == "sqlite":
        from .sqlite import SqliteStore

        return SqliteStore(path)
    with _named_extra():
        from .redis import RedisStore

        return RedisStore(url, password)


def open_jobs(url: str, password: str | None = None) -> JobStore:
    """The jobs of the store at `url`. Raises as `open_store`."""
    scheme, _, path = url.partition(":")
    if scheme == "sqlite":
        from .sqlite_jobs import SqliteJobs

        # A file of its own: counters need not wait for large bodies, nor for the disk.
        return SqliteJobs(f"{path}-jobs")
    with _named_extra():
        from .redis_jobs import RedisJobs

        return RedisJobs(url, password)


@contextlib.contextmanager
def _named_extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise RuntimeError(
            "the store is Redis, and the package for it is missing: pip install 'verbatim-proxy[redis]'"
        ) from None
