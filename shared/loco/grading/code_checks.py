"""Tests of code, each as what the child computes and what the parent makes of it.

The child runs code that may do anything to it: return objects that equal everything, replace
functions, write forged lines. So of `assert abs(f(2) - 1.5) < 0.01` it computes only `f(2)`; the
comparison, and what is compared with, stay here.
"""

import ast
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from loco.contracts.code_tests import CodeCase, CodeTests
from loco.grading.code_values import one_line, same_as_json, shown

#: Values the child computed, in the order of the steps of one check; asking for one that failed raises.
Values = Callable[[int], object]
_Shell = Callable[[Values], object]

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], object]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: operator.contains(b, a),
    ast.NotIn: lambda a, b: not operator.contains(b, a),
}
#: Functions of the answer's value and the expected one, called here: pure, and never slow.
_FUNCTIONS: dict[str, Callable[..., object]] = {
    "abs": abs,
    "isclose": math.isclose,
    "math.isclose": math.isclose,
}
#: Functions that make an expected value of a literal: `set([1, 2])`, `float("inf")`.
_MAKERS: dict[str, Callable[[Any], object]] = {
    "float": float,
    "frozenset": frozenset,
    "list": list,
    "set": set,
    "sorted": sorted,
    "tuple": tuple,
}


class Check(NamedTuple):
    """One test."""

    #: What it is called in `Graded.why`.
    name: str
    #: What the child computes for it.
    steps: list[dict[str, object]]
    #: Whether the values are right.
    passes: Callable[[Values], bool]
    #: What the values say, for `Graded.why`.
    says: Callable[[Values], str]


def checks(tests: CodeTests) -> list[Check]:
    """The tests in their order: cases, then asserts."""
    cases = [
        _of_case(case, tests.entry or "", f"case {number} of {len(tests.cases)}")
        for number, case in enumerate(tests.cases, start=1)
    ]
    asserts = [
        _of_assert(text, tests.entry, f"assert {number} of {len(tests.asserts)}")
        for number, text in enumerate(tests.asserts, start=1)
    ]
    return cases + asserts


def _of_case(case: CodeCase, entry: str, name: str) -> Check:
    arguments = [shown(a) for a in case.args] + [f"{k}={shown(v)}" for k, v in case.kwargs.items()]
    call = f"{entry}({one_line(', '.join(arguments))})"
    return Check(
        name,
        [{"args": list(case.args), "kwargs": case.kwargs}],
        lambda values: same_as_json(case.expected, values(0)),
        lambda values: f"{call} gave {shown(values(0))}, not {shown(case.expected)}",
    )


def _of_assert(text: str, entry: str | None, name: str) -> Check:
    *setup, test = ast.parse(text).body
    assert isinstance(test, ast.Assert)
    plan = _Plan(entry)
    shell = plan.of(test.test, truth=True)
    if not plan.holes:  # it calls nothing but the like of `sorted`: the answer's own, then
        plan, shell = _Plan(entry), lambda values: values(0)
        plan.hole(test.test, truth=True)
    steps = plan.holes
    steps[0]["setup"] = "\n".join(map(ast.unparse, setup))
    said = one_line(ast.unparse(test.test))

    def says(values: Values) -> str:
        if len(steps) == 1 and not steps[0]["truth"]:
            return (
                f"{said} is false: {one_line(str(steps[0]['expression']))} gave {shown(values(0))}"
            )
        return f"{said} is false"

    return Check(name, steps, lambda values: bool(shell(values)), says)


class _Plan:
    """Divides an expression into a shell, computed here, and holes, computed by the child."""

    def __init__(self, entry: str | None) -> None:
        self.holes: list[dict[str, object]] = []
        self._entry = entry

    def hole(self, node: ast.expr, *, truth: bool) -> _Shell:
        """Leaves an expression to the child; with `truth` only whether it is true."""
        index = len(self.holes)
        self.holes.append({"setup": "", "expression": ast.unparse(node), "truth": truth})
        return lambda values: values(index)

    def of(self, node: ast.expr, *, truth: bool = False) -> _Shell:  # noqa: PLR0911 - a return a kind
        """The shell of an expression, its holes noted."""
        try:
            literal = self._literal(node)
        except (ValueError, TypeError, SyntaxError):
            pass
        else:
            return lambda _: literal
        match node:
            case ast.BoolOp(op=op, values=parts) if truth:
                return _boolean(op, [self.of(part, truth=True) for part in parts])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self.of(operand, truth=True)
                return lambda values: not inner(values)
            case ast.Compare(left=left, ops=ops, comparators=right) if _comparable(node):
                return _compared(ops, [self.of(part) for part in (left, *right)])
            case ast.BinOp(op=ast.Sub(), left=left, right=right):
                a, b = self.of(left), self.of(right)
                return lambda values: operator.sub(a(values), b(values))
            case ast.Tuple(elts=parts) | ast.List(elts=parts) if not _starred(parts):
                kind = tuple if isinstance(node, ast.Tuple) else list
                shells = [self.of(part) for part in parts]
                return lambda values: kind(shell(values) for shell in shells)
            case ast.Call() if self._known(node):
                return self._call(node)
        return self.hole(node, truth=truth)

    def _literal(self, node: ast.expr) -> object:
        match node:
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if (
                name in _MAKERS and name != self._entry
            ):
                return _MAKERS[name](ast.literal_eval(argument))
        return ast.literal_eval(node)

    def _known(self, node: ast.Call) -> bool:
        name = ast.unparse(node.func)
        return (
            name in _FUNCTIONS
            and name != self._entry
            and not _starred(node.args)
            and all(k.arg in ("rel_tol", "abs_tol") for k in node.keywords)
        )

    def _call(self, node: ast.Call) -> _Shell:
        function = _FUNCTIONS[ast.unparse(node.func)]
        arguments = [self.of(a) for a in node.args]
        keywords = {str(k.arg): self.of(k.value) for k in node.keywords}
        return lambda values: function(
            *(a(values) for a in arguments), **{k: v(values) for k, v in keywords.items()}
        )


def _boolean(op: ast.boolop, parts: Sequence[_Shell]) -> _Shell:
    if isinstance(op, ast.And):
        return lambda values: all(part(values) for part in parts)
    return lambda values: any(part(values) for part in parts)


def _comparable(node: ast.Compare) -> bool:
    """Whether it means the same of copies: identity does for None, True and False only."""
    identity = any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops)
    constants = (None, True, False)
    return not identity or (
        isinstance(node.comparators[-1], ast.Constant)
        and any(node.comparators[-1].value is c for c in constants)
    )


def _compared(ops: Sequence[ast.cmpop], sides: Sequence[_Shell]) -> _Shell:
    functions = [_COMPARISONS[type(op)] for op in ops]

    def shell(values: Values) -> object:
        left = sides[0](values)
        for function, side in zip(functions, sides[1:], strict=True):
            right = side(values)
            if not function(left, right):
                return False
            left = right
        return True

    return shell


def _starred(nodes: Sequence[ast.expr]) -> bool:
    return any(isinstance(node, ast.Starred) for node in nodes)
