"""Which grader fits right answers, and that it takes them for right."""

import pytest

from loco.grading.eval_items import EvalItem
from loco.grading.graders import grade
from loco.grading.picking import pick

LONG = [
    "Restart the router, wait until the second lamp is green, and then ask for a new address.",
    "Send the parcel back with form R7, and keep the receipt until the refund has arrived.",
    "The warranty of two years begins on the day of delivery, whatever the invoice says.",
]
CODE = [
    "def area(r):\n    return 3.14 * r * r",
    "def double(x):\n    return 2 * x",
    "import math\n\ndef root(x):\n    return math.sqrt(x)",
]


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (["42", "1,200", "-3.5", "1/2"], "numeric"),
        (["3 and 4 make 7.\n#### 7", "Twice 4.\nThe answer is 8"], "numeric"),
        (["A", "B", "C", "A", "B", "C", "A", "C", "B"], "choice"),
        (["billing", "shipping", "billing", "shipping", "billing", "billing"], "choice"),
        (['{"team": "a"}', '{"team": "b", "n": 1}', "[1, 2]"], "json"),
        (["5000 m", "12 kg", "7 litres"], "words"),
        (["Paris", "Rome", "Oslo", "Bern"], "words"),
        (CODE, "contains"),
        (LONG, "contains"),
    ],
)
def test_the_grader_that_fits_takes_every_right_answer_and_no_other(answers, kind) -> None:
    picked = pick(answers)
    assert picked.kind == kind, picked.why
    for number, answer in enumerate(answers):
        item = EvalItem.model_validate({"id": "1", "question": "?", **picked.fields(answer)})
        assert grade(item, answer).correct, (answer, item)
        other = next(a for a in answers[number:] + answers[:number] if a != answer)
        assert not grade(item, other).correct, (other, item)


def test_what_only_looks_alike_is_no_number_and_no_choice() -> None:
    assert pick(["5 km", "7 km", "9 km"]).kind == "words"
    assert pick(["yes", "no", "perhaps"]).kind == "words"  # each once: no options yet
    assert pick(["42", "many", "12"]).kind == "words"


def test_of_code_without_tests_its_functions_are_looked_for_and_tests_are_asked_for() -> None:
    picked = pick(CODE)
    assert picked.fields(CODE[0])["grader"]["all"] == ("area",) or picked.fields(CODE[0])["grader"][
        "all"
    ] == ["area"]
    assert "cases" in picked.advice
