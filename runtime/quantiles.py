"""Median, 99th percentile and maximum: the three figures that are reported everywhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Median, 99th percentile and maximum of some figures; 0 when there are none."""

    p50: float
    p99: float
    max: float


def quantiles(values: list[float]) -> Quantiles:
    """The three figures."""
    if not values:
        return Quantiles(0.0, 0.0, 0.0)
    ordered = sorted(values)
    last = len(ordered) - 1
    return Quantiles(ordered[last // 2], ordered[round(last * 0.99)], ordered[last])
