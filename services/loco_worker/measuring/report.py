"""What was measured, for people: one line a comparison, and report.md."""

import re
from collections.abc import Mapping, Sequence

from loco.contracts.evaluation import Baseline, GateResult, Role
from loco.contracts.results import Comparison, Score
from loco.grading.gate import is_cut_often, p_without_cut
from loco_worker.measuring.comparing import Verdict
from loco_worker.measuring.models import CANDIDATE

#: Problems listed of those that were won, and of those that were lost, in each set.
LISTED = 25
#: Characters of an answer that the report shows; eval.jsonl has all.
SHOWN_CHARACTERS = 1500

NAMES = {
    Baseline.BASE: "the base model",
    Baseline.INSTRUCTED: "the base model with the recipe's instruction",
    Baseline.EXPORTED: "the base model through the same export",
    Baseline.PROMOTED: "the version that serves now",
}
_ROLES = {
    Role.PRIMARY: "decides",
    Role.GUARD: "must not get worse",
    Role.SHOWN: "is shown only",
}


def in_words(comparison: Comparison) -> str:
    """A comparison in one line."""
    base, candidate = comparison.base, comparison.candidate
    return (
        f"{comparison.set}: {candidate.model} {_right(candidate)} against {NAMES[comparison.against]} "
        f"{base.model} {_right(base)}: {_gain(comparison)}; {comparison.won} won, {comparison.lost} "
        f"lost, p = {comparison.p_value:.2g}{_small(comparison)}"
    )


def left_of_gain(comparisons: Sequence[Comparison]) -> list[str]:
    """How much of each gain an instruction alone does not give, a sentence for each set."""
    by = {(c.set, c.against): c for c in comparisons}
    sentences = []
    for (name, against), told in by.items():
        plain = by.get((name, Baseline.BASE))
        if against is not Baseline.INSTRUCTED or plain is None:
            continue
        prompted = told.base.accuracy - plain.base.accuracy
        sentences.append(
            f"{name}: the instruction alone moves the base by {_points(prompted)}, the adapter "
            f"by {_points(plain.gain)}; {_points(told.gain)} are the adapter's own. The adapter "
            "gets no credit for a gain that a prompt gives for free."
        )
    return sentences


def warnings(
    comparisons: Sequence[Comparison],
    contaminated: Mapping[str, int],
    *,
    trained_on_known: bool,
    num_predict: int,
) -> tuple[str, ...]:
    """What makes the figures less trustworthy, a sentence each."""
    found = [
        f"CONTAMINATED: {count} problems of {name} overlap rows that the model was trained on, "
        "so its score there is too high. Choose other problems, or run prepare again with this "
        "set in eval.sets."
        for name, count in contaminated.items()
        if count
    ]
    if not trained_on_known:
        found.append(
            "It is not known whether problems overlap the training data: stage prepare of "
            "the job left no data."
        )
    for comparison in comparisons:
        base, candidate = comparison.base, comparison.candidate
        if is_cut_often(base):
            found.append(
                f"{_cut(NAMES[comparison.against], base, comparison.set, num_predict)}: if the "
                "limit is too small for the other model, the gain is not real. "
                f"{_won_on_cut(comparison)} {_RAISE}"
            )
        if is_cut_often(candidate):
            found.append(
                f"{_cut('the new model', candidate, comparison.set, num_predict)}: its score is "
                f"too low, or it has not learned to end. {_RAISE} If as many are still cut, "
                "train on answers that end."
            )
    return tuple(dict.fromkeys(found))  # the candidate is in every comparison of a set


_RAISE = (
    "Raise eval.num_predict (and eval.num_ctx, for question and answer together) until few are cut."
)


def _cut(who: str, score: Score, name: str, num_predict: int) -> str:
    return (
        f"{score.unfinished} of {score.total} answers of {who} {score.model} to {name} were cut at "
        f"eval.num_predict = {num_predict} tokens"
    )


def _won_on_cut(comparison: Comparison) -> str:
    """How much of a gain may be the limit's doing."""
    if not comparison.won_on_cut:
        return "None of the problems won is among these."
    return (
        f"{comparison.won_on_cut} of {comparison.won} problems won are among these. If they "
        f"count as ties, {comparison.won - comparison.won_on_cut} are won and {comparison.lost} "
        f"lost, p = {p_without_cut(comparison):.2g}."
    )


def report(
    candidate: str,
    comparisons: Sequence[Comparison],
    verdicts: Sequence[Verdict],
    *,
    left_out: Mapping[Baseline, str],
    warned: Sequence[str],
    gate: GateResult | None,
) -> str:
    """The whole measurement as Markdown, for a reader who has never seen one."""
    lines = [f"# How good is {_escaped(candidate)}?", ""]
    if gate is not None:
        lines += [f"**Verdict: {gate.verdict}.** {_escaped(' '.join(gate.reasons))}", ""]
        lines += [f"- {_escaped(advice)}" for advice in gate.advice] + [""] * bool(gate.advice)
    for warning in warned:
        lines += [f"> **Warning.** {_escaped(warning)}", ""]
    lines += _figures(comparisons)
    lines += _meaning(comparisons, left_out)
    lines += _tokens(comparisons)
    for comparison in comparisons:
        if comparison.against is Baseline.BASE:
            lines += _side_by_side(comparison, verdicts)
    return "\n".join(lines).rstrip() + "\n"


def _figures(comparisons: Sequence[Comparison]) -> list[str]:
    lines = [
        "## Figures",
        "",
        "| problems | compared with | right before | right now | gain (95 % interval) | won / lost | p |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {c.set}, {_ROLES[c.role]} | {NAMES[c.against]} | {_right(c.base)} | "
        f"{_right(c.candidate)} | {_gain(c)} | {c.won} / {c.lost} | {c.p_value:.2g} |"
        for c in comparisons
    ]
    return [*lines, ""]


def _meaning(comparisons: Sequence[Comparison], left_out: Mapping[Baseline, str]) -> list[str]:
    lines = ["## What they mean", ""]
    lines += [
        "- *Won* are problems that only the new model solves, *lost* those that only the other "
        "one does; *p* is how likely a result at least this uneven would be if both were "
        "equally good (exact McNemar test).",
        "- The interval contains the true gain in 95 of 100 such measurements. If it contains "
        "0, no gain is shown.",
    ]
    sizes = {c.set: c for c in comparisons}
    for c in sizes.values():
        if c.smallest_difference is not None:
            lines.append(
                f"- {c.set}: {c.candidate.total} problems can only show a difference of "
                f"{100 * c.smallest_difference:.0f} points or more, and only if none is lost."
            )
    lines += [f"- {_escaped(sentence)}" for sentence in left_of_gain(comparisons)]
    lines += [f"- Not compared with {NAMES[b]}: {_escaped(why)}." for b, why in left_out.items()]
    return [*lines, ""]


def _tokens(comparisons: Sequence[Comparison]) -> list[str]:
    lines = [
        "## Tokens and time",
        "",
        "Seconds are the server's computing time for an answer. Reused answers keep the "
        "time of their first run.",
        "",
        "| problems | model | tokens an answer | cut at the limit | median s | 95th "
        "percentile s | reused |",
        "|---|---|---|---|---|---|---|",
    ]
    seen = set()
    for c in comparisons:
        for name, score in ((NAMES[c.against], c.base), ("the new model", c.candidate)):
            if (c.set, name) in seen:
                continue
            seen.add((c.set, name))
            lines.append(
                f"| {c.set} | {name} | {score.tokens / score.total:.0f} | {score.unfinished} of "
                f"{score.total} | {score.latency_p50:.2f} | {score.latency_p95:.2f} | {score.cached} |"
            )
    return [*lines, ""]


def _side_by_side(comparison: Comparison, verdicts: Sequence[Verdict]) -> list[str]:
    """Problems won and lost against the base, both answers next to each other."""
    of_set = [v for v in verdicts if v.set == comparison.set]
    before = {v.item.id: v for v in of_set if v.role == comparison.against}
    now = {v.item.id: v for v in of_set if v.role == CANDIDATE}
    lines: list[str] = []
    for title, won in (("Won", True), ("Lost", False)):
        pairs = [
            (before[i], now[i])
            for i in now
            if now[i].correct is won and before[i].correct is not won
        ]
        lines += [f"## {title} on {comparison.set}: {len(pairs)}", ""]
        for old, new in pairs[:LISTED]:
            lines += [
                f"### {_escaped(old.item.id)}",
                "",
                f"{_escaped(old.item.question)} **Right: {_escaped(old.item.answer) or 'see its grader'}**",
                "",
                f"| {_escaped(old.model)}: {_verdict(old)} | {_escaped(new.model)}: {_verdict(new)} |",
                "|---|---|",
                f"| {_escaped(old.answer.text)} | {_escaped(new.answer.text)} |",
                "",
            ]
        if len(pairs) > LISTED:
            lines += [f"{len(pairs) - LISTED} more are in problems.jsonl.", ""]
    return lines


def _verdict(verdict: Verdict) -> str:
    read = verdict.graded.extracted
    words = "right" if verdict.correct else "wrong"
    words += f", read as {_escaped(read)}" if read else ", no answer found in it"
    return words if verdict.finished else f"{words}, cut"


def _right(score: Score) -> str:
    return (
        f"{score.correct}/{score.total} ({score.accuracy:.0%}, {score.low:.0%} to {score.high:.0%})"
    )


def _gain(comparison: Comparison) -> str:
    interval = ""
    if comparison.low is not None and comparison.high is not None:
        interval = f" ({100 * comparison.low:+.0f} to {100 * comparison.high:+.0f})"
    return f"{_points(comparison.gain)}{interval}"


def _small(comparison: Comparison) -> str:
    least = comparison.smallest_difference
    if least is None or comparison.p_value <= 0.05 or abs(comparison.gain) >= least:
        return ""
    return f"; {comparison.candidate.total} problems can only show {100 * least:.0f} points or more"


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"


def _escaped(text: str) -> str:
    """Text of models and files inside Markdown and its tables: shown, never rendered nor run."""
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]} …"
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", text)
    lines = (line.strip() for line in re.split(r"[\r\n\u2028\u2029]", text))
    return "<br>".join(line for line in lines if line)
