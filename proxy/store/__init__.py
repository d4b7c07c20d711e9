"""The store: the state that all workers share, behind `ports.Store`.

Rules
  1. A store is made without touching disk or network. It connects at its first use, and again by itself at
     the first use after a failure.
  2. Whatever the backend raises is a `StoreError`. After one, what was asked may have been done or not: the
     answer can be lost on its way back.
  3. After `close` a store raises `StoreError`, so that whoever is late opens nothing again.

Not here: what the counters and records mean (`limits`, `grants`).
"""

from __future__ import annotations

from proxy.ports import Store


def open_store(url: str, password: str | None = None) -> Store:
    """The store at `url`, which `values.store` has checked.

    Raises RuntimeError when this machine lacks what it needs.
    """
    scheme, _, path = url.partition(":")
    # Only the backend in use is imported: `redis` is an extra, and costs 10 MB and a tenth of a second.
    if scheme == "sqlite":
        from .sqlite import SqliteStore

        return SqliteStore(path)
    try:
        from .redis import RedisStore
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise RuntimeError(
            "the store is Redis, and the package for it is missing: pip install 'verbatim-proxy[redis]'"
        ) from None
    return RedisStore(url, password)
