"""Generates short arithmetic problems with one-line worked answers, from a seed and nothing else.

They are what a 135M model can learn within a minute on a CPU: one step of arithmetic, percent,
unit price, area, linear equations, each 40 to 70 tokens long with the chat template around it.

    python -m loco_worker.sources.arithmetic 5 --seed 1
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from random import Random
from typing import NamedTuple

PEOPLE = ("Tom", "Mia", "Sam", "Ana", "Ben", "Lily", "Omar", "Zoe", "Max", "Nina", "Leo", "Eva")
THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps", "toys", "cups")
GOODS = (
    ("pen", "pens"),
    ("cup", "cups"),
    ("book", "books"),
    ("ticket", "tickets"),
    ("melon", "melons"),
    ("shirt", "shirts"),
    ("ball", "balls"),
    ("lamp", "lamps"),
)
PLACES = ("room", "garden", "field", "wall", "carpet", "rectangle", "table", "poster")


class Problem(NamedTuple):
    """A generated problem."""

    #: Which generator made it, e.g. `percent`.
    kind: str
    #: Kind and numbers: two problems with the same key differ only in their wording.
    key: str
    question: str
    #: The worked answer, one line.
    work: str
    #: The number asked for.
    answer: int


def problems(seed: int | str) -> Iterator[Problem]:
    """Problems without end; the same seed gives the same ones, on every machine.

    Problems may repeat (there are only so many short ones): the caller drops duplicates.
    """
    # a string seed is hashed by SHA-512: near seeds give unrelated problems
    rng = Random(f"arithmetic {seed}")  # noqa: S311 (not for secrets)
    kinds = tuple(KINDS)
    while True:
        # one of each kind in a shuffled order: every prefix is balanced
        for kind in rng.sample(kinds, len(kinds)):
            yield KINDS[kind](rng)


def _sum(rng: Random) -> Problem:
    a, b = rng.randint(3, 99), rng.randint(3, 99)
    asked = _asked(rng, f"{a} + {b}", f"Add {a} and {b}.", f"What is the sum of {a} and {b}?")
    return Problem("sum", f"sum {min(a, b)} {max(a, b)}", asked, f"{a} + {b} = {a + b}", a + b)


def _difference(rng: Random) -> Problem:
    b, c = rng.randint(3, 60), rng.randint(3, 60)
    a = b + c
    asked = _asked(rng, f"{a} - {b}", f"Subtract {b} from {a}.", f"How much is {a} minus {b}?")
    return Problem("difference", f"difference {a} {b}", asked, f"{a} - {b} = {c}", c)


def _product(rng: Random) -> Problem:
    a, b = rng.randint(2, 15), rng.randint(2, 12)
    asked = _asked(
        rng, f"{a} * {b}", f"Multiply {a} by {b}.", f"What is the product of {a} and {b}?"
    )
    return Problem(
        "product", f"product {min(a, b)} {max(a, b)}", asked, f"{a} * {b} = {a * b}", a * b
    )


def _quotient(rng: Random) -> Problem:
    b, c = rng.randint(2, 12), rng.randint(2, 15)
    a = b * c
    asked = _asked(rng, f"{a} / {b}", f"Divide {a} by {b}.", f"What is {a} divided by {b}?")
    return Problem("quotient", f"quotient {a} {b}", asked, f"{a} / {b} = {c}", c)


def _percent(rng: Random) -> Problem:
    part = rng.choice((5, 10, 20, 25, 30, 40, 50, 75))
    # so that the answer is whole
    whole = rng.randint(1, 20) * {5: 20, 25: 20, 75: 20}.get(part, 10)
    answer = part * whole // 100
    asked = rng.choice(
        (
            f"What is {part}% of {whole}?",
            f"Find {part} percent of {whole}.",
            f"Calculate {part}% of {whole}.",
            f"A shop takes {part}% off a price of ${whole}. How many dollars are taken off?",
        )
    )
    return Problem(
        "percent",
        f"percent {part} {whole}",
        asked,
        f"{part}% of {whole} = {part} * {whole} / 100 = {answer}",
        answer,
    )


def _total_price(rng: Random) -> Problem:
    count, price = rng.randint(2, 12), rng.randint(2, 15)
    one, many = rng.choice(GOODS)
    total = count * price
    asked = rng.choice(
        (
            f"One {one} costs ${price}. How much do {count} {many} cost?",
            f"A {one} costs {price} dollars. What do {count} {many} cost?",
            f"{rng.choice(PEOPLE)} buys {count} {many} at ${price} each. What is the total price?",
        )
    )
    return Problem(
        "total-price", f"total-price {count} {price}", asked, f"{count} * {price} = {total}", total
    )


def _unit_price(rng: Random) -> Problem:
    count, price = rng.randint(2, 12), rng.randint(2, 12)
    one, many = rng.choice(GOODS)
    total = count * price
    asked = rng.choice(
        (
            f"{count} {many} cost ${total}. How much does one {one} cost?",
            f"{rng.choice(PEOPLE)} pays {total} dollars for {count} {many}. "
            f"What is the price of one {one}?",
        )
    )
    return Problem(
        "unit-price", f"unit-price {total} {count}", asked, f"{total} / {count} = {price}", price
    )


def _area(rng: Random) -> Problem:
    long, wide = rng.randint(3, 15), rng.randint(2, 12)
    place = rng.choice(PLACES)
    asked = rng.choice(
        (
            f"A {place} is {long} meters long and {wide} meters wide. What is its area?",
            f"What is the area of a {place} of {long} by {wide} meters?",
            f"Find the area of a rectangle with sides {long} and {wide}.",
        )
    )
    area = long * wide
    return Problem(
        "area",
        f"area {min(long, wide)} {max(long, wide)}",
        asked,
        f"{long} * {wide} = {area}",
        area,
    )


def _equation(rng: Random) -> Problem:
    x, add = rng.randint(2, 12), rng.randint(1, 20)
    factor = rng.choice((1, 2, 2, 3, 3, 4, 5))
    total = factor * x + add
    left = f"x + {add}" if factor == 1 else f"{factor}x + {add}"
    asked = rng.choice(
        (
            f"Solve for x: {left} = {total}",
            f"Solve {left} = {total} for x.",
            f"If {left} = {total}, what is x?",
        )
    )
    if factor == 1:
        work = f"x = {total} - {add} = {x}"
    else:
        work = f"{factor}x = {total} - {add} = {factor * x}, so x = {factor * x} / {factor} = {x}"
    return Problem("equation", f"equation {left} = {total}", asked, work, x)


def _more(rng: Random) -> Problem:
    a, b = rng.randint(3, 60), rng.randint(2, 40)
    who, what = rng.choice(PEOPLE), rng.choice(THINGS)
    asked = rng.choice(
        (
            f"{who} has {a} {what} and gets {b} more. How many {what} does {who} have now?",
            f"There are {a} {what} in a box. {who} adds {b}. How many {what} are in the box?",
        )
    )
    return Problem("more", f"more {a} {b}", asked, f"{a} + {b} = {a + b}", a + b)


def _fewer(rng: Random) -> Problem:
    b, c = rng.randint(2, 40), rng.randint(2, 50)
    a = b + c
    who, what = rng.choice(PEOPLE), rng.choice(THINGS)
    asked = rng.choice(
        (
            f"{who} has {a} {what} and gives away {b}. How many {what} are left?",
            f"There were {a} {what}. {who} took {b} of them. How many {what} remain?",
        )
    )
    return Problem("fewer", f"fewer {a} {b}", asked, f"{a} - {b} = {c}", c)


#: Every kind of problem, by name.
KINDS: dict[str, Callable[[Random], Problem]] = {
    "sum": _sum,
    "difference": _difference,
    "product": _product,
    "quotient": _quotient,
    "percent": _percent,
    "total-price": _total_price,
    "unit-price": _unit_price,
    "area": _area,
    "equation": _equation,
    "more": _more,
    "fewer": _fewer,
}


def _asked(rng: Random, expression: str, *phrases: str) -> str:
    """A calculation in one of its wordings."""
    return rng.choice(
        (
            f"What is {expression}?",
            f"Calculate {expression}.",
            f"Compute {expression}.",
            f"{expression} = ?",
            *phrases,
        )
    )


def main() -> int:
    """Prints problems, one JSON object a line."""
    parser = argparse.ArgumentParser(description="Prints generated problems.")
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for problem in islice(problems(arguments.seed), arguments.count):
        sys.stdout.write(json.dumps(problem._asdict()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
