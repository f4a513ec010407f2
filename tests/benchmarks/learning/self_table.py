"""The tables of the study of own answers, in Markdown, from what was kept of it."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from answers import read
from arms import ARMS, BASE, SMALL_ARMS, VARIANTS
from keep import Answers, kept_answers, kept_json
from pooled import Pooled, Solved, pooled

from loco.grading.significance import mcnemar_exact

INSTRUCTED = "instructed"
#: Seeds measured on the test problems; others chose the variant.
_SEEDS = range(10)
#: Seeds of an arm that the study is to measure.
_PLANNED = 3
#: What each seed is asked for, by exact McNemar.
_MOST_P = 0.001
#: How much lower counts as not below: one point of accuracy.
_MARGIN = 0.01


class Measured(NamedTuple):
    """One arm on one set: a seed's answers each."""

    name: str
    seeds: dict[int, Answers]

    @property
    def solved(self) -> Solved:
        return {seed: answers.correct for seed, answers in self.seeds.items()}

    @property
    def one(self) -> Mapping[str, bool]:
        """The answers of a model that is not trained."""
        (answers,) = self.seeds.values()
        return answers.correct


def table(results: Path) -> str:
    """Everything measured so far."""
    return "\n\n".join(
        part
        for part in (
            "\n".join(_set(results, "test", "test")),
            "\n".join(_asked(results)),
            "\n".join(_choice(results)),
            "\n".join(_made(results)),
            "\n".join(_small(results)),
            "\n".join(_gguf(results)),
        )
        if part
    )


def _measured(results: Path, names: Sequence[str], eval_: str, chosen: str) -> list[Measured]:
    """The arms of which there are answers, base and instructed base before them."""
    found: list[Measured] = []
    bases: dict[str, Answers] = {}
    for name in names:
        seeds = {}
        for home in sorted((results / name).glob("seed-*")):
            number = int(home.name.rpartition("-")[2])
            answers = kept_answers(home, eval_, chosen, "candidate")
            if answers is None or (eval_ == "test") != (number in _SEEDS):
                continue
            seeds[number] = answers
            for role in (BASE, INSTRUCTED):
                known = kept_answers(home, eval_, chosen, role)
                if known is not None:
                    bases.setdefault(role, known)
        if seeds:
            found.append(Measured(name, seeds))
    return [Measured(role, {0: answers}) for role, answers in bases.items()] + found


def _set(results: Path, eval_: str, chosen: str) -> Iterator[str]:
    arms = _measured(results, [*ARMS, *VARIANTS], eval_, chosen)
    if not arms:
        return
    yield (
        "| arm | solved, by seed | mean (sd) | accuracy | won / lost, p against base, by seed "
        "| against the instructed base, by seed | gate, by seed | tokens an answer | cut |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    base, instructed = (_first(arms, role) for role in (BASE, INSTRUCTED))
    for arm in arms:
        counts = [sum(answers.correct.values()) for answers in arm.seeds.values()]
        problems = len(next(iter(arm.seeds.values())).correct)
        mean = statistics.mean(counts)
        sd = f" ({statistics.stdev(counts):.1f})" if len(counts) > 1 else ""
        verdicts = [
            str(
                (kept_json(results / arm.name / f"seed-{n}" / f"eval-{eval_}.json") or {})
                .get("gate", {})
                .get("verdict", "")
            )
            for n in arm.seeds
        ]
        tokens = statistics.mean(t for a in arm.seeds.values() for t in a.tokens.values())
        cut = "/".join(str(sum(not e for e in a.ended.values())) for a in arm.seeds.values())
        yield (
            f"| {arm.name} | {', '.join(map(str, counts))} | {mean:.1f}{sd} of {problems} "
            f"| {mean / problems:.1%} | {_each(base, arm)} | {_each(instructed, arm)} "
            f"| {', '.join(v for v in verdicts if v)} | {tokens:.0f} | {cut} |"
        )


def _first(arms: Sequence[Measured], name: str) -> Measured | None:
    return next((arm for arm in arms if arm.name == name), None)


def _each(base: Measured | None, arm: Measured) -> str:
    """Won / lost and McNemar p of every seed."""
    if base is None or arm.name == base.name or arm.name == BASE:
        return ""
    pairs = (_pair(base.one, after) for after in arm.solved.values())
    return "; ".join("{} / {}, {:.1g}".format(*pair) for pair in pairs)


def _pair(before: Mapping[str, bool], after: Mapping[str, bool]) -> tuple[int, int, float]:
    """Won, lost and the exact McNemar p."""
    common = before.keys() & after.keys()
    won = sum(after[i] and not before[i] for i in common)
    lost = sum(before[i] and not after[i] for i in common)
    return won, lost, mcnemar_exact(won, lost)


def _asked(results: Path) -> Iterator[str]:
    """What issue and page ask of the study, each with its answer."""
    arms = _measured(results, [*ARMS, *VARIANTS], "test", "test")
    by_name = {arm.name: arm for arm in arms}
    base, default = by_name.get(BASE), by_name.get("default")
    strong = [arm for arm in arms if arm.name in VARIANTS]
    if base is None:
        return
    yield "| asked | difference (95 %) | p | naive p | |"
    yield "|---|---|---|---|---|"
    for arm in arms:
        if arm.name in ARMS:
            yield _line(f"{arm.name} over base", base, arm, _seeds_shown(base, arm))
    instructed = by_name.get(INSTRUCTED)
    if instructed is not None:
        yield _line("instructed base over base", base, instructed, "")
        if default is not None:
            yield _line(
                "default over instructed base",
                instructed,
                default,
                _not_below,
            )
    plain = by_name.get("default-plain")
    if default is not None and plain is not None:
        yield _line("default over default-plain", plain, default, "")
    for arm in strong:
        if instructed is not None:
            yield _line(f"{arm.name} over instructed base", instructed, arm, _shown(0.01))
        if default is not None:
            yield _line(f"{arm.name} over default", default, arm, _shown(0.05))
    alone = by_name.get("strong-sft")
    for arm in strong:
        if alone is not None and arm is not alone:
            yield _line(f"{arm.name} over strong-sft", alone, arm, "")
    yield ""
    yield (
        "Differences are of accuracies, means over the seeds; intervals by bootstrap over the problems; p by the "
        "exact sign-flip test of the problems' differences, to which seeds that share problems are one "
        "sample; *naive*: McNemar as if every seed's answers were further problems."
    )


def _seeds_shown(base: Measured, arm: Measured) -> str:
    """How many of the seeds show the arm better, of all that were to be measured."""
    pairs = [_pair(base.one, after) for after in arm.solved.values()]
    shown = sum(won > lost and p < _MOST_P for won, lost, p in pairs)
    missing = _PLANNED - len(pairs)
    words = f"better, p < {_MOST_P:g}: {shown} of {max(_PLANNED, len(pairs))} seeds"
    return f"{words}, {missing} not measured" if missing > 0 else words


def _not_below(found: Pooled) -> str:
    """Whether it is shown not to be below; a difference too small to be significant shows nothing."""
    if found.difference >= 0:
        return "not below: yes"
    if found.low > -_MARGIN:
        return f"lower, but by less than {100 * _MARGIN:g} point (low end of the interval): yes"
    return "not below: not shown"


def _shown(most: float) -> Callable[[Pooled], str]:
    return lambda found: f"p < {most:g}: {_yes(found.difference > 0 and found.p < most)}"


def _line(what: str, first: Measured, second: Measured, says: str | Callable[[Pooled], str]) -> str:
    found = pooled(first.solved, second.solved)
    naive = "" if found.naive is None else f"{found.naive:.2g}"
    words = says(found) if callable(says) else says
    return (
        f"| {what} | {100 * found.difference:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f}) "
        f"| {found.p:.2g} | {naive} | {words} |"
    )


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _choice(results: Path) -> Iterator[str]:
    """The variants on the development problems."""
    choice = kept_json(results / "choice.json")
    rows = list(_set(results, "dev", "dev"))
    if rows:
        chosen = f"chosen: {choice['chosen']}" if choice else "none chosen yet"
        yield f"On the development problems ({chosen}):"
        yield ""
        yield from rows


def _made(results: Path) -> Iterator[str]:
    """What each training took."""
    rows = []
    for name in (*ARMS, *VARIANTS, *SMALL_ARMS):
        for home in sorted((results / name).glob("seed-*")):
            prepare, train = kept_json(home / "prepare.json"), kept_json(home / "train.json")
            if prepare is None or train is None:
                continue
            sampling = prepare.get("sampling") or {}
            evals = [kept_json(path) or {} for path in home.glob("eval-*.json")]
            pairs = train.get("preference")
            learned = (
                f", pairs told apart {pairs['first_accuracy']:.0%} → {pairs['last_accuracy']:.0%}"
                if pairs
                else ""
            )
            rows.append(
                f"| {name} | {home.name.removeprefix('seed-')} | {prepare['kept']} "
                f"| {sampling.get('asked', '')} | {_percent(sampling.get('pass_rate'))} "
                f"| {sampling.get('pairs', '')} | {prepare['seconds']:.0f} "
                f"| {train['total_steps']} | {train['first_loss']:.3f} → {train['last_loss']:.3f}{learned} "
                f"| {train['seconds']:.0f} | {sum(e.get('seconds', 0) for e in evals):.0f} |"
            )
    if rows:
        yield (
            "| arm | seed | rows | samples | pass rate | pairs | prepare, s | steps | loss | train, s "
            "| eval, s |"
        )
        yield "|---|---|---|---|---|---|---|---|---|---|---|"
        yield from rows
        yield ""
        yield "What goes on with pairs adds its seconds of training to those of strong-sft."


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _small(results: Path) -> Iterator[str]:
    arms = _measured(results, list(SMALL_ARMS), "test", "test")
    base = _first(arms, BASE)
    if base is None:
        return
    yield "The weak base:"
    yield ""
    yield "| arm | solved | won / lost, p against base | tokens an answer | cut |"
    yield "|---|---|---|---|---|"
    for arm in arms:
        answers = next(iter(arm.seeds.values()))
        yield (
            f"| {arm.name} | {sum(answers.correct.values())} of {len(answers.correct)} "
            f"| {_each(base, arm)} | {statistics.mean(answers.tokens.values()):.0f} "
            f"| {sum(not e for e in answers.ended.values())} |"
        )


def _gguf(results: Path) -> Iterator[str]:
    """The exported files, and the same problems from the Hugging Face weights."""
    found: dict[str, dict[str, bool]] = {}
    cut: dict[str, int] = {}
    for path in sorted((results / "gguf").glob("*.jsonl")):
        name = path.name.rsplit(".", 2)[0]
        answers = read(path)
        found.setdefault(name, {}).update({i: a.correct for i, a in answers.items()})
        cut[name] = cut.get(name, 0) + sum(not a.ended for a in answers.values())
    if not found:
        return
    hf = {
        f"{arm.name}-seed-{seed}": answers.correct
        for arm in _measured(results, [*ARMS, *VARIANTS], "test", "test")
        for seed, answers in arm.seeds.items()
    }
    hf[BASE] = hf.pop(f"{BASE}-seed-0", {})
    yield "From the exported Q4_K_M GGUF (llama.cpp, CPU):"
    yield ""
    yield "| model | solved | won / lost, p against the base's GGUF | cut | the Hugging Face weights, same problems |"
    yield "|---|---|---|---|---|"
    for name in sorted(found, key=lambda n: (n != BASE, n)):
        solved = found[name]
        against = ""
        if name != BASE and BASE in found:
            against = "{} / {}, {:.1g}".format(*_pair(found[BASE], solved))
        same = [hf[name][i] for i in solved if i in hf.get(name, {})]
        yield (
            f"| {name} | {sum(solved.values())} of {len(solved)} | {against} | {cut[name]} "
            f"| {f'{sum(same)} of {len(same)}' if same else ''} |"
        )
