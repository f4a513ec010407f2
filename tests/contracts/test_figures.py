"""Figures for people: durations, sizes, and curves of one line."""

import pytest

from loco.contracts.figures import duration, size, sparkline


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0.0 s"),
        (0.44, "0.4 s"),
        (9.96, "10.0 s"),
        (12.4, "12 s"),
        (59.7, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3600, "1 h 00 min"),
        (11_220, "3 h 07 min"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (105_454_432, "105.5 MB"), (2.5e9, "2.50 GB")],
)
def test_sizes(count, words):
    assert size(count) == words


def test_sparklines():
    assert sparkline([]) == ""
    assert sparkline([1]) == "▁"
    assert sparkline([2, 2, 2]) == "▁▁▁"
    assert sparkline(list(range(8, 0, -1))) == "█▇▆▅▄▃▂▁"
    assert len(sparkline(list(range(1000)), width=24)) == 24
