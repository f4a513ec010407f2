"""Figures for people: durations, sizes, shares, and a curve in one line of text."""

from collections.abc import Sequence
from itertools import pairwise

_BARS = "▁▂▃▄▅▆▇█"


def duration(seconds: float) -> str:
    """Seconds as `0.4 s`, `12 s`, `2 min 05 s` or `3 h 07 min`."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = whole // 60
    return f"{minutes // 60} h {minutes % 60:02} min"


def age(seconds: float) -> str:
    """How long ago, as far as anybody asks: `8 s`, `22 min`, `3 h`, `12 d`."""
    for unit, length, until in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 86400)):
        if seconds < until:
            return f"{max(seconds, 0) // length:.0f} {unit}"
    return f"{seconds // 86400:.0f} d"


def size(count: float) -> str:
    """Bytes in decimal units, as disks and downloads are sold: `512 B`, `105.4 MB`, `2.50 GB`."""
    if count < 1000:
        return f"{count:.0f} B"
    if count < 1e6:
        return f"{count / 1e3:.1f} kB"
    if count < 1e9:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e9:.2f} GB"


def share(part: float) -> str:
    """A share of one in percent: 0.55 is `55 %`, 0.555 is `55.5 %`."""
    return f"{100 * part:.1f}".removesuffix(".0") + " %"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """A curve as a row of bars, lowest to highest; more values than `width` are averaged."""
    if not values:
        return ""
    columns = min(width, len(values))
    edges = [i * len(values) // columns for i in range(columns + 1)]
    means = [sum(values[start:stop]) / (stop - start) for start, stop in pairwise(edges)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(_BARS[round((mean - low) / span * (len(_BARS) - 1))] for mean in means)
