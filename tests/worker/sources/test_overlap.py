import pytest

from loco.datasets.overlap import OverlapIndex, calculation, normalise


def index(*questions: str, ngram: int = 13) -> OverlapIndex:
    made = OverlapIndex(ngram)
    for number, question in enumerate(questions, start=1):
        made.add(f"benchmark/{number}", question)
    return made


@pytest.mark.parametrize(
    ("question", "rule"),
    [
        ("what is  15+27 ??", "equal"),
        ("Compute 15 + 27.", "calculation"),
        ("15 + 27 = ?", "calculation"),
        ("Please answer: What is 15 + 27? Think first.", "calculation"),
        ("Tom has 3 cards. What is 15 + 27?", "ngram"),
        ("What is 15 - 27?", None),
        ("What is 15 + 28?", None),
        ("Tom has 15 + 27 apples and eats 3. How many are left?", None),
    ],
)
def test_rules_against_a_short_question(question: str, rule: str | None) -> None:
    match = index("What is 15 + 27?").match(question)
    assert (match.rule if match else None) == rule


LONG = (
    "A farmer has 45 chickens and buys 18 more at the market. "
    "How many chickens does the farmer have now?"
)


def test_a_long_shared_run_of_words_overlaps() -> None:
    row = "Long ago a farmer has 45 chickens and buys 18 more at the market. How old is he?"
    match = index("What is 1 + 1?", LONG).match(row)
    assert match is not None
    assert match == ("benchmark/2", "ngram")


def test_a_shorter_shared_run_does_not() -> None:
    row = "A farmer has 45 chickens and buys 18 more. How many eggs do they lay?"
    assert index(LONG).match(row) is None
    match = index(LONG, ngram=8).match(row)
    assert match is not None
    assert match.rule == "ngram"


def test_other_numbers_in_the_same_words_do_not_overlap() -> None:
    assert index(LONG).match(LONG.replace("45", "46").replace("18", "19")) is None


def test_the_same_generated_problem_in_other_words_overlaps() -> None:
    made = OverlapIndex(13)
    made.add("held_out/h1", "Find 20 percent of 50.", "percent 20 50")
    match = made.match("Calculate 20% of 50.", "percent 20 50")
    assert match is not None
    assert match.rule == "problem"
    assert made.match("Calculate 20% of 60.", "percent 20 60") is None


def test_a_question_can_overlap_several_items() -> None:
    made = index("What is 15 + 27?", "Compute 15 + 27.", "What is 15 + 28?")
    met = {match.item for match in made.matches("15 + 27 = ?")}
    assert met == {"benchmark/1", "benchmark/2"}
    assert list(made.matches("What is 2 + 2?")) == []


def test_normalising_keeps_what_changes_a_problem() -> None:
    assert normalise("It's  $1,234.50 × 3!") == "it s 1234.50 * 3"  # noqa: RUF001
    assert normalise("a half-full cup") == normalise("A half full cup?")
    assert normalise("2 - 1") != normalise("2 + 1")
    assert normalise("-5") != normalise("5")


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Solve for x: 2x + 5 = 13", "2x+5=13"),
        ("Compute 6 + 4 * 5.", "6+4*5"),
        ("Calculate (3 + 4) * 2.", "(3+4)*2"),
        ("What is 3/4 of 60?", None),
        ("How many cats?", None),
    ],
)
def test_calculations(question: str, expected: str | None) -> None:
    assert calculation(question) == expected
