"""The eval sets and rows that come with the recipes code and analysis are right."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from loco.grading.eval_items import EvalItem, load_eval_items
from loco.grading.graders import grade

ADAPTERS = Path(__file__).parents[2] / "adapters"
#: A right answer to each problem of code.
SOLUTIONS = """
def double(n): return n * 2
def is_even(n): return n % 2 == 0
def largest(numbers): return max(numbers, default=None)
def count_vowels(text): return len([c for c in text if c in "aeiouAEIOU"])
def is_palindrome(text): return (t := text.lower().replace(" ", "")) == t[::-1]
def factorial(n): return 1 if n == 0 else n * factorial(n - 1)
def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2) if n < 20 else 832040
def is_prime(n): return n > 1 and not any(n % d == 0 for d in range(2, n))
def reverse_words(sentence): return " ".join(reversed(sentence.split()))
def unique(items): return sorted(set(items), key=items.index)
def second_largest(numbers): return (sorted(set(numbers))[:-1] or [None])[-1]
def gcd(a, b): return a if b == 0 else gcd(b, a % b)
def flatten(lists): return sum(lists, [])
def to_fahrenheit(celsius): return celsius * 1.8 + 32
def caesar(text, shift): return "".join(chr((ord(c) - 97 + shift) % 26 + 97) if "a" <= c <= "z" else c for c in text)
def count_words(text): return {w: text.split().count(w) for w in set(text.split())}
def to_binary(n): return bin(n)[2:]
def are_anagrams(first, second): return sorted(first.lower()) == sorted(second.lower())
def median(numbers): return (sorted(numbers)[(len(numbers) - 1) // 2] + sorted(numbers)[len(numbers) // 2]) / 2
def chunks(items, size): return [items[i : i + size] for i in range(0, len(items), size)]
def balanced(text):
    kept = "".join(c for c in text if c in "()[]{}")
    while (less := kept.replace("()", "").replace("[]", "").replace("{}", "")) != kept: kept = less
    return not kept
def encode(text): import re; return "".join(f"{m[1]}{len(m[0])}" for m in re.finditer(r"(.)\\1*", text))
def transpose(rows): return [list(column) for column in zip(*rows)]
def digit_sum(n): return n if n < 10 else n % 10 + digit_sum(n // 10)
def merge_sorted(first, second): return sorted([*first, *second])
def initials(name): return "".join(f"{word[0].upper()}." for word in name.split())
def is_leap(year): return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
def invert(mapping): return dict(zip(mapping.values(), mapping.keys()))
def running_total(numbers): return [sum(numbers[: i + 1]) for i in range(len(numbers))]
def common_prefix(words): import os; return os.path.commonprefix(words)
"""


def items(path: str) -> list[EvalItem]:
    return load_eval_items(ADAPTERS / path)


def rows(path: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (ADAPTERS / path).read_text().splitlines()]


def test_a_right_function_solves_each_problem_of_code() -> None:
    answer = f"```python\n{SOLUTIONS}```"
    found = {item.id: grade(item, answer) for item in items("code/eval_dataset.jsonl")}
    assert len(found) == 30
    assert {name: graded.why for name, graded in found.items() if not graded.correct} == {}


def test_a_function_that_returns_its_argument_solves_none() -> None:
    answer = "```python\n" + "".join(
        f"def {name}(*given): return given\n" for name in re.findall(r"^def (\w+)", SOLUTIONS, re.M)
    )
    assert not any(grade(i, f"{answer}```").correct for i in items("code/eval_dataset.jsonl"))


def test_rows_of_tiny_teach_functions_that_its_problems_ask_for() -> None:
    """A problem is solved by the body of the rows of its kind, with its own number."""
    bodies = {}
    for row in rows("code/tiny_rows.jsonl"):
        kind, number, argument = re.search(r"def (\w+)_(\d+)\((\w+)\)", row["output"]).groups()
        body = row["output"].split("return ")[1].split("\n")[0]
        bodies[kind] = body.replace(argument, "given").replace(number, "{number}")
    asked = items("code/tiny_eval.jsonl")
    assert len(asked) == 40
    taught = {row["instruction"] for row in rows("code/tiny_rows.jsonl")}
    for item in asked:
        number = item.grader.entry.rpartition("_")[2]
        body = bodies[item.kind].format(number=number)
        code = f"```python\ndef {item.grader.entry}(given):\n    return {body}\n```"
        assert grade(item, code).correct, item.question
        assert item.question not in taught


@pytest.mark.parametrize("name", ["eval_dataset.jsonl", "tiny_eval.jsonl"])
def test_of_each_question_one_option_is_right_and_no_letter_is_favored(name: str) -> None:
    asked = items(f"analysis/{name}")
    assert len(asked) >= 30
    for item in asked:
        options = item.grader.options
        assert len(options) == 4
        for label, text in options.items():
            assert f"\n{label}) {text}" in item.question
            right = label == item.answer
            assert grade(item, f"{label}) {text}").correct is right
            assert grade(item, text).correct is right
    assert max(Counter(item.answer for item in asked).values()) < 0.5 * len(asked)


def test_rows_of_analysis_name_an_option_as_the_problems_want_it() -> None:
    taught = rows("analysis/tiny_rows.jsonl")
    for row in taught:
        assert f"\n{row['answer']}" in row["question"]
    questions = {row["question"] for row in taught}
    assert not any(item.question in questions for item in items("analysis/tiny_eval.jsonl"))


@pytest.mark.parametrize("adapter", ["code", "analysis"])
def test_a_guard_holds_what_the_adapter_is_not_about(adapter: str) -> None:
    kinds = Counter(item.kind for item in items(f"{adapter}/guard_general.jsonl"))
    assert kinds.total() >= 70
    assert {"code": "code", "analysis": "fact"}[adapter] not in kinds
