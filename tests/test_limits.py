"""Windows of limits stand still in UTC, and amounts of money are exact."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import limits
from proxy.limits import Kind, Limit

WINDOWS = {
    "1m": ("2026-11-22T05:39:00", "2026-11-22T05:40:00"),
    "5m": ("2026-11-22T05:35:00", "2026-11-22T05:40:00"),
    "1h": ("2026-11-22T05:00:00", "2026-11-22T06:00:00"),
    "1d": ("2026-11-22T00:00:00", "2026-11-23T00:00:00"),
    "1w": ("2026-11-16T00:00:00", "2026-11-23T00:00:00"),
    "1M": ("2026-11-01T00:00:00", "2026-12-01T00:00:00"),
    "1Q": ("2026-10-01T00:00:00", "2027-01-01T00:00:00"),
    "1Y": ("2026-01-01T00:00:00", "2027-01-01T00:00:00"),
}


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize("duration", WINDOWS)
def test_a_window_is_that_of_the_calendar(duration: str) -> None:
    """2026-11-22 is a Sunday: its week began on Monday the 16th."""
    start, end = map(at, WINDOWS[duration])
    for now in (start, at("2026-11-22T05:39:26"), end - 0.001):
        assert (limits.window_start(duration, now), limits.window_end(duration, now)) == (start, end)
    assert limits.window_start(duration, end) == end


@given(
    st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1)),
    st.integers(1, 60),
    st.sampled_from("mhdwMQY"),
)
def test_windows_follow_each_other(moment: datetime, count: int, unit: str) -> None:
    """Every moment is in exactly one window, and the next begins where it ends."""
    now = moment.replace(tzinfo=UTC).timestamp()
    duration = f"{count}{unit}"
    start, end = limits.window_start(duration, now), limits.window_end(duration, now)
    assert start <= now < end
    assert limits.window_start(duration, end) == end
    assert limits.window_end(duration, start - 1) == start
    assert end - start <= timedelta(days=366 * 61).total_seconds()


def test_a_counter_is_another_one_in_the_next_window() -> None:
    """Its name says the window's end, so nothing has to be reset."""
    limit = Limit("team/t", Kind.COST, 1, "1h")
    now = at("2026-11-22T05:59:59")
    end = int(at("2026-11-22T06:00:00"))
    assert limit.counter(now) == limit.counter(now + 0.9) == (f"team/t/cost/1h/{end}", end)
    assert limit.counter(now + 1) == (f"team/t/cost/1h/{end + 3600}", end + 3600)


def test_a_full_limit_is_looked_at_again_when_its_window_has_ended() -> None:
    """What was found full is not asked for a second, but never beyond its window."""
    limit = Limit("team/t", Kind.REQUESTS, 1, "1m")
    now = at("2026-11-22T05:59:59.5")
    limit.close(now, 1.0)
    assert limit.is_full(now + 0.4)
    assert not limit.is_full(now + 0.5)


@given(st.integers(0, limits.MOST))
def test_dollars_are_exact(pico: int) -> None:
    """An amount is written with every digit that it has, and with no exponent."""
    text = limits.dollars(pico)
    assert Decimal(text) * limits.PICO == pico
    assert "E" not in text
    assert not ("." in text and text.endswith(("0", ".")))
