"""The study's table: what each recipe learned, with intervals and p, in Markdown."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from answers import Answer, read

from loco.grading.significance import mcnemar_exact, wilson_interval
from recipes import ATTENTION, BASE, RECIPES, Study

Source = Literal["hf", "gguf"]
TITLES: dict[Source, str] = {
    "hf": "From the Hugging Face weights (bfloat16, adapter merged)",
    "gguf": "From the exported Q4_K_M GGUF (llama.cpp)",
}


def table(study: Study) -> str:
    """Everything measured so far."""
    lines = [*_trainings(study)]
    for source in TITLES:
        lines += ["", *_scores(study, source)]
    lines += ["", *_agreements(study), *_repeat(study)]
    return "\n".join(lines)


def _trainings(study: Study) -> Iterator[str]:
    trained = {name: _result(study, name, "train") for name in RECIPES}
    prepared = _result(study, "prepare", "prepare")
    if prepared:
        yield (
            f"{prepared['kept']} of {prepared['read']} training rows kept, "
            f"{prepared['dropped']['overlap']} overlap one of "
            f"{prepared['eval_items_checked']} test problems."
        )
        yield ""
    yield (
        "| recipe | layers | r | learning rate | epochs | parameters | steps | training loss, first "
        "→ last 20 steps | loss on the test answers, base → trained | training |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name, result in trained.items():
        if result is None:
            continue
        recipe = RECIPES[name]
        losses = [step["loss"] for step in result["log"]]
        yield (
            f"| {name} | {'attention' if recipe.targets == ATTENTION else 'all'} | {recipe.r} "
            f"| {recipe.learning_rate:g} | {recipe.epochs:g} "
            f"| {result['trainable_parameters'] / 1e6:.1f} M | {result['total_steps']} "
            f"| {_mean(losses[:20]):.3f} → {_mean(losses[-20:]):.3f} "
            f"| {result['base_validation_loss']:.3f} → {result['validation_loss']:.3f} "
            f"| {result['train_seconds']:.0f} s |"
        )


def _scores(study: Study, source: Source) -> Iterator[str]:
    yield f"{TITLES[source]}:"
    yield ""
    yield "| model | solved | accuracy (95 %) | gain | won / lost | McNemar p | cut at the limit | tokens |"
    yield "|---|---|---|---|---|---|---|---|"
    base = read(study.answers(BASE, source))
    for name in (BASE, *RECIPES):
        answers = read(study.answers(name, source))
        if not answers:
            continue
        correct, total = sum(a.correct for a in answers.values()), len(answers)
        low, high = wilson_interval(correct, total)
        cut = sum(not a.ended for a in answers.values())
        yield (
            f"| {name} | {correct} of {total} "
            f"| {correct / total:.1%} ({low:.1%} to {high:.1%}) | {_against(base, answers, name)} "
            f"| {cut} | {_mean([a.tokens for a in answers.values()]):.0f} |"
        )


def _against(base: dict[str, Answer], answers: dict[str, Answer], name: str) -> str:
    """Gain, won / lost and p on the problems that both answered."""
    common = base.keys() & answers.keys()
    if name == BASE or not common:
        return " | | "
    won = sum(answers[i].correct and not base[i].correct for i in common)
    lost = sum(base[i].correct and not answers[i].correct for i in common)
    gain = (won - lost) / len(common)
    return f"{100 * gain:+.1f} points | {won} / {lost} | {mcnemar_exact(won, lost):.2g}"


def _agreements(study: Study) -> Iterator[str]:
    """How far the quantized model is the trained one: the same problems solved."""
    for name in (BASE, *RECIPES):
        hf, gguf = (read(study.answers(name, source)) for source in TITLES)
        common = hf.keys() & gguf.keys()
        if not common:
            continue
        lost = sum(hf[i].correct and not gguf[i].correct for i in common)
        won = sum(gguf[i].correct and not hf[i].correct for i in common)
        same = sum(hf[i].text == gguf[i].text for i in common)
        yield (
            f"- {name}: of {len(common)} problems {lost} are solved by the Hugging Face weights "
            f"alone, {won} by the GGUF alone (p {mcnemar_exact(won, lost):.2g}); {same} answers are "
            f"the same to the letter{_perplexity(study, name)}."
        )


def _perplexity(study: Study, name: str) -> str:
    found = (_result(study, name, "export") or {}).get("perplexity")
    return f"; perplexity on test answers {found['change']:+.1%}" if found else ""


def _repeat(study: Study) -> Iterator[str]:
    spread = _result(study, "repeat", "repeat")
    if spread:
        yield (
            f"- The same seed twice ({spread['recipe']}, {spread['device']}, {spread['steps']} "
            f"steps): {spread['identical_losses']} losses identical, largest difference "
            f"{spread['largest_relative_difference']:.2g} of the loss, mean "
            f"{spread['mean_relative_difference']:.2g}; largest difference of a weight "
            f"{spread['largest_weight_difference']:.2g}."
        )


def _result(study: Study, name: str, what: str) -> dict[str, Any] | None:
    path: Path = study.home(name) / f"{what}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _mean(values: list[float] | list[int]) -> float:
    return sum(values) / len(values)
