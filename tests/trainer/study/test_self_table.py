"""What the study's table claims of kept answers, and what it does not."""

import gzip
import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.train

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "learning"))

from self_table import table  # noqa: E402

PROBLEMS = 400


def keep(results, arm, seed, candidate, instructed=200):
    """Keeps answers of an arm beside those of the bases; each solves the first so many problems.

    The base solves 200.
    """
    home = results / arm / f"seed-{seed}"
    home.mkdir(parents=True)
    solved = {"candidate": candidate, "base": 200, "instructed": instructed}
    roles = {
        role: [[f"test-{n}", int(n < count), 1, 100] for n in range(PROBLEMS)]
        for role, count in solved.items()
    }
    (home / "answers-test.json.gz").write_bytes(gzip.compress(json.dumps({"test": roles}).encode()))


def asked(results, what):
    """The last cell of a line of the questions."""
    [line] = [line for line in table(results).splitlines() if line.startswith(f"| {what} |")]
    return line.removesuffix(" |").rpartition("|")[2].strip()


def test_the_seeds_that_show_it_are_counted_of_all_that_were_to_be(tmp_path):
    keep(tmp_path, "default", 0, 260)
    assert asked(tmp_path, "default over base") == (
        "better, p < 0.001: 1 of 3 seeds, 2 not measured"
    )
    keep(tmp_path, "default", 1, 203)  # too little
    keep(tmp_path, "default", 2, 140)  # worse
    assert asked(tmp_path, "default over base") == "better, p < 0.001: 1 of 3 seeds"


@pytest.mark.parametrize(
    ("candidate", "says"),
    [
        (230, "not below: yes"),
        (200, "not below: yes"),
        (199, "lower, but by less than 1 point (low end of the interval): yes"),
        (195, "not below: not shown"),  # p 0.06: no difference is shown, and none ruled out
        (150, "not below: not shown"),
    ],
)
def test_not_below_is_claimed_of_what_is_shown_alone(tmp_path, candidate, says):
    keep(tmp_path, "default", 0, candidate)
    assert asked(tmp_path, "default over instructed base") == says
