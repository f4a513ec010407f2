"""The score table as a person sees it."""

from io import StringIO

from rich.console import Console

from loco.cli.summary import comparison_table
from loco.contracts.results import Comparison, EvalResult, Score


def score(model: str, correct: int, low: float, high: float) -> Score:
    return Score(
        model=model,
        correct=correct,
        total=100,
        accuracy=correct / 100,
        low=low,
        high=high,
        unfinished=0,
        seconds=1,
    )


def test_scores_are_whole_on_a_terminal_of_80_columns() -> None:
    comparison = Comparison(
        set="benchmark",
        base=score("smollm2:135m", 27, 0.193, 0.364),
        candidate=score("locollm-math:20261122-164524-8d2d68", 100, 0.963, 1.0),
        gain=0.73,
        won=73,
        lost=0,
        p_value=2e-22,
    )
    result = EvalResult(
        seconds=1,
        files={},
        base_model="smollm2:135m",
        candidate="locollm-math:20261122-164524-8d2d68",
        comparisons=(comparison,),
    )
    output = StringIO()
    Console(width=80, file=output).print(comparison_table(result))
    for whole in ("27/100, 27 % (19-36)", "100/100, 100 % (96-100)", "+73 pts", "< 0.0001"):
        assert whole in output.getvalue()
