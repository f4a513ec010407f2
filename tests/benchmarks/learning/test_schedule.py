"""What the study's driver begins, waits for and leaves out, by what is on the disk; nothing is trained."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from arms import Scale
from lab import Lab, Options
from schedule import CHOSEN, EXPLORE_SEED, Driver, Job

from programs import Budget


@pytest.fixture
def lab(tmp_path):
    options = Options(
        out=tmp_path,
        gsm8k=tmp_path,
        folders={},
        served={},
        gpus=("cpu",),
        test=None,
        dev=1,
        scale=Scale(),
        slots=1,
        serve=(),
    )
    (tmp_path / "results").mkdir()
    return Lab(options, Budget(None))


def explored(lab, name, correct):
    """A variant measured on the development problems."""
    home = lab.out / "results" / name / f"seed-{EXPLORE_SEED}"
    home.mkdir(parents=True)
    result = {"comparisons": [{"candidate": {"correct": correct}}]}
    (home / "eval-dev.json").write_text(json.dumps(result))


def driver(lab, *explorations):
    """Explorations with their status, and one job of the variant that they choose."""
    jobs = [
        Job(name, EXPLORE_SEED, ("dev",), "cpu", status=status) for name, status in explorations
    ]
    return Driver(lab, [*jobs, Job(CHOSEN, 0, ("test",), "cpu")], choose_after=0, strong=None)


def test_the_best_variant_with_pairs_is_chosen(lab):
    for name, correct in (("strong-sft", 9), ("strong", 7), ("strong-1e-5", 8)):
        explored(lab, name, correct)
    found = driver(lab, ("strong-sft", "done"), ("strong", "done"), ("strong-1e-5", "done"))
    found._choose()
    assert found.chosen == "strong-1e-5"
    assert json.loads((lab.out / "results" / "choice.json").read_text())["chosen"] == "strong-1e-5"


def test_rows_alone_are_no_choice_and_what_waits_for_one_is_left_out(lab):
    explored(lab, "strong-sft", 9)
    found = driver(lab, ("strong-sft", "done"), ("strong", "failed"))
    found._choose()
    assert found.chosen is None
    assert (found.jobs[-1].status, found.jobs[-1].note) == (
        "left out",
        "no variant with pairs was measured",
    )
    assert not any(found._may_come(job) for job in found.jobs)


def test_while_a_variant_may_come_its_measure_waits(lab):
    explored(lab, "strong-sft", 9)
    found = driver(lab, ("strong-sft", "done"), ("strong", "running"))
    found._choose()
    assert found.jobs[-1].status == "waiting"


@pytest.mark.parametrize("status", ["failed", "left out"])
def test_what_goes_on_from_an_adapter_needs_the_adapter_and_not_its_measure(lab, status):
    found = driver(lab, ("strong-sft", status), ("strong", "waiting"))
    folder = lab.trained_folder("strong-sft", EXPLORE_SEED)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    taken = found._take("cpu")
    assert taken is found.jobs[1]
    assert taken.status == "running"


def test_what_goes_on_from_an_adapter_that_will_not_be_is_left_out(lab):
    found = driver(lab, ("strong-sft", "failed"), ("strong", "waiting"))
    assert found._take("cpu") is None
    assert (found.jobs[1].status, found.jobs[1].note) == ("left out", "strong-sft failed")
