from fractions import Fraction

import pytest

from loco.grading import answers


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is 42", "42"),
        ("15 + 27 = 42\nThe answer is 42.", "42"),
        ("15 + 27 = 42.", "42"),
        ("48/2 = 24, and 48 + 24 = 72 clips.", "72"),
        ("so **x = 4**", "4"),
        ("Step 1: 2x = 8\nStep 2: x = 8/2 = 4\nThus x=4.", "4"),
        ("2x + 5 = 13 is true for **x = 4**, since 2 * 4 + 5 = 13?", "13"),
        ("The answer is $1,234.50.", "1,234.50"),
        ("It costs $1.50 per apple", "1.50"),
        ("The total is 1 000 cents? No: **12**.", "12"),
        (r"\boxed{\frac{3}{4}}", "3/4"),
        (r"\( \boxed{42\text{ apples}} \) of 50", "42"),
        (r"$\boxed{1{,}234}$", "1,234"),
        (r"Therefore $x = \boxed{-7}$.", "-7"),
        ("#### 72", "72"),
        ("2½", "2 1/2"),
        ("2 1/2 cups", "2 1/2"),
        ("The answer is −5.", "-5"),  # noqa: RUF001
        ("10-5 = 5", "5"),
        ("$-3", "-3"),
        ("The answer is 25%", "25%"),
        ("That is 25 percent.", "25%"),
        ("The final answer is: **12**.", "12"),
        ("The answer is 3 + 4 = 7.", "7"),
        ("The correct answer is 15 apples, since 3 boxes of 5 were sold.", "15"),
        ("The answer is 12. Wait, no. The answer is 13.", "13"),
        ("<think>the answer is 12</think>It is 42", "42"),
        ("<think>never closed 12", None),
        ("60 km/h", "60"),
        ("She needs 580/110 = 5.27 bags.\nA: 5", "5"),
        ("A: 5\nB: 6 = 3 + 3", "3"),
        ("9 / 21 * 100% = 42.857, which rounds down to 43%", "43%"),
        ("It is = 3.14, rounded off to 2 decimal places", "3.14"),
        ("x = 3 + 4", "4"),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_the_answer_is_found_however_it_is_written(text: str, found: str | None) -> None:
    number = answers.extract(text)
    assert (number.text if number else None) == found


@pytest.mark.parametrize(
    ("expected", "text", "correct"),
    [
        ("1234.5", "$1,234.50", True),
        ("0.75", "3/4", True),
        ("3/4", "0.75", True),
        ("1/3", "0.33", True),
        ("1/3", "0.3", False),
        ("2/3", "0.66", False),
        ("0.125", "0.13", False),
        ("2.5", "2 1/2", True),
        ("25", "25%", True),
        ("0.25", "25%", True),
        ("25%", "0.25", True),
        ("25", "0.25", False),
        ("42", "42.0", True),
        ("42", "-42", False),
        ("100000", "100001", False),
        ("6.25", "6.2500001", True),
        ("4", "four", False),
        ("42", "", False),
        ("Paris", "The answer is paris.", True),
        (r"9\pi", r"\boxed{9\pi}", True),
        (r"9\pi", "9", False),
        (r"48^\circ", "x = 48", True),
        ("Paris", "The answer is London.", False),
        ("5 × 7 × 7", "The answer is 5 × 7 × 7", True),  # noqa: RUF001
    ],
)
def test_verdicts(expected: str, text: str, correct: bool) -> None:
    assert answers.is_correct(expected, text) is correct


def test_numbers_are_exact() -> None:
    number = answers.parse("1,234.1 dollars")
    assert number is not None
    assert number.value == Fraction(12341, 10)


@pytest.mark.parametrize("text", ["5 and 6", "about 5", "", "x", "1/0"])
def test_a_text_of_more_than_a_number_is_not_parsed(text: str) -> None:
    assert answers.parse(text) is None
