"""What fine-tuning teaches SmolLM2-135M: trained on GSM8K, measured on all its test problems.

    .venv-train/bin/python tests/benchmarks/learning all --gsm8k DIR --out DIR

Step by step, each going on where it was interrupted: `prepare`, `train NAME…`, `answer-hf NAME…`,
`answer-gguf NAME…`, `table`; `repeat NAME` trains the first steps twice with the same seed. The GGUF
part needs no GPU: copy `DIR/home` (a few MB a recipe) to another machine and run it there. `DIR` of
--gsm8k holds GSM8K's train.jsonl and test.jsonl. `all` does the GPU's part first.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import stage_runs
from answers import read
from table import table

from programs import Budget, Skipped
from recipes import BASE, RECIPES, ROOT, Study

COMMANDS = ("prepare", "train", "repeat", "answer-hf", "answer-gguf", "table", "all")


def main() -> int:
    """Runs one command; exit code 1 when something was left out or failed."""
    arguments = _arguments()
    study = Study(
        out=arguments.out,
        gsm8k=arguments.gsm8k,
        models=arguments.models,
        rows=arguments.rows,
        examples=arguments.examples,
        problems=arguments.problems,
        max_steps=arguments.max_steps,
    )
    driver = Driver(study, arguments, Budget(arguments.minutes))
    match arguments.command:
        case "prepare":
            driver.each(["prepare"], lambda _: stage_runs.prepare(study, driver.budget))
        case "train":
            driver.each(arguments.names or RECIPES, driver.train)
        case "repeat":
            driver.each(arguments.names or [next(iter(RECIPES))], driver.repeat)
        case "answer-hf":
            driver.each(arguments.names or [BASE, *driver.trained()], driver.answer_hf)
        case "answer-gguf":
            driver.each(arguments.names or driver.telling(), driver.answer_gguf)
        case "all":
            driver.everything(arguments.names)
    if arguments.command in ("table", "all"):
        text = table(study)
        print(text)
        (study.out / "home" / "table.md").write_text(text + "\n")
    return 1 if driver.left_out else 0


class Driver:
    """Runs the parts, some of them at once, within the budget."""

    def __init__(self, study: Study, arguments: argparse.Namespace, budget: Budget) -> None:
        self.study = study
        self.budget = budget
        self.left_out: list[str] = []
        self._arguments = arguments

    def everything(self, names: list[str]) -> None:
        """The whole study: each recipe is answered for as soon as it is trained."""
        self.each(["prepare"], lambda _: stage_runs.prepare(self.study, self.budget))
        self.each([BASE, *(names or RECIPES)], self._learn)
        self.each([next(iter(RECIPES))], self.repeat)
        if find_spec("llama_cpp") is None:
            print("answer-gguf: left out, llama_cpp is not installed here", flush=True)
            return
        self.each(self.telling(), self.answer_gguf)

    def each(self, names: Iterable[str], work: Callable[[str], object]) -> None:
        """Does the work for every name, `--parallel` at a time; says what was left out and why."""

        def guarded(name: str) -> None:
            try:
                work(name)
            except (Skipped, RuntimeError) as error:
                self.left_out.append(str(error))
                print(error, flush=True)

        with ThreadPoolExecutor(self._arguments.parallel) as pool:
            list(pool.map(guarded, names))

    def train(self, name: str) -> None:
        """Trains one recipe."""
        result = stage_runs.train(self.study, name, self.budget)
        print(
            f"train {name}: {result['total_steps']} steps in {result['train_seconds']:.0f} s, "
            f"loss {result['first_loss']:.3f} → {result['last_loss']:.3f}",
            flush=True,
        )

    def repeat(self, name: str) -> None:
        """Trains the first steps twice."""
        steps = self._arguments.repeat_steps
        spread = stage_runs.repeat(self.study, name, steps, self.budget)
        print(f"repeat {name}: {spread}", flush=True)

    def answer_hf(self, name: str) -> None:
        """Answers from the Hugging Face weights."""
        self._answer("hf", name)

    def answer_gguf(self, name: str) -> None:
        """Answers from the GGUF."""
        self._answer("gguf", name)

    def trained(self) -> list[str]:
        """The recipes whose adapter is here."""
        return [name for name in RECIPES if (self.study.home(name) / stage_runs.ADAPTER).is_file()]

    def telling(self) -> list[str]:
        """The models worth the time of the GGUF part: base, default recipe and the best one."""
        trained = self.trained()
        solved = {
            name: sum(a.correct for a in read(self.study.answers(name, "hf")).values())
            for name in trained
        }
        best = sorted(trained, key=lambda name: -solved[name])[:1]
        return list(dict.fromkeys([BASE, *best, *(n for n in trained if n == next(iter(RECIPES)))]))

    def _learn(self, name: str) -> None:
        if name != BASE:
            self.train(name)
        self.answer_hf(name)

    def _answer(self, source: str, name: str) -> None:
        """Answers in a process of its own, which gives memory and GPU back when it ends."""
        options = vars(self._arguments)
        if options["child"]:
            # by name: where a GPU is, llama.cpp need not be installed, and the other way round
            module = import_module(f"answer_{source}")
            module.answer(self.study, name, options["at_once"], self.budget)
            return
        self.budget.require(10, f"answer-{source} {name}")
        command = [sys.executable, str(Path(__file__).parent), f"answer-{source}", name, "--child"]
        for option in ("out", "gsm8k", "models", "problems", "at_once"):
            if options[option] is not None:
                command += [f"--{option.replace('_', '-')}", str(options[option])]
        if self.budget.seconds_left != float("inf"):
            command += ["--minutes", str(self.budget.seconds_left / 60)]
        if subprocess.run(command, check=False).returncode != 0:
            raise Skipped(f"answer-{source} {name}: not whole, see above")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="learning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("names", nargs="*", help=f"{BASE} (answers only), {', '.join(RECIPES)}")
    parser.add_argument("--out", type=Path, default=ROOT / ".loco" / "learning")
    parser.add_argument("--gsm8k", type=Path, required=True, help="train.jsonl and test.jsonl")
    parser.add_argument("--models", type=Path, default=ROOT / ".loco" / "models")
    parser.add_argument("--minutes", type=float, help="leave out what no longer fits")
    parser.add_argument("--parallel", type=int, default=1, help="trainings or answerers at once")
    parser.add_argument("--rows", type=int, default=16, help="rows an optimizer step")
    parser.add_argument("--examples", type=int, help="training rows (default: all)")
    parser.add_argument("--problems", type=int, help="test problems (default: all)")
    parser.add_argument("--max-steps", type=int, help="stop each training after so many steps")
    parser.add_argument("--repeat-steps", type=int, default=50)
    parser.add_argument("--at-once", type=int, help="prompts in a batch (default: by device)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    known = (BASE, *RECIPES) if arguments.command.startswith("answer") else tuple(RECIPES)
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        parser.error(f"no recipe {', '.join(unknown)}; there are {', '.join(known)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
