"""How many rows prepare will hold back to measure with, before it has read them."""

from itertools import islice

from loco.contracts.datasets import Format
from loco.contracts.errors import DataError
from loco.contracts.sources import FEWEST_HELD_BACK, JsonlSource, SelfSource, SplitSource
from loco.contracts.specs import JobSpec, PrepareSpec
from loco.contracts.stages import Stage
from loco.datasets import formats
from loco.datasets.formats import Problem
from loco.datasets.split import problems_of
from loco.grading.held_back import candidate_of, hold_back
from loco.planning.deadline import check_time
from loco.planning.history import History
from loco.planning.row_lengths import lengths_of_file
from loco.recipes.data_files import dataset_path
from loco.recipes.default_sets import split_of
from loco.settings import Settings

#: Rows that a grader is picked from here.
_ROWS_READ = 500
_CHARACTERS_READ = 2 * 2**20


def notes_on_sets(spec: JobSpec, history: History, settings: Settings) -> list[str]:
    """What to know before submitting of rows that are held back; nothing where none are.

    Args:
        spec: the job.
        history: earlier runs: one of the same rows knows them.
        settings: says where files lie.
    """
    asked = split_of(spec.prepare)
    if asked is None or Stage.PREPARE not in spec.stages or Stage.EVAL not in spec.stages:
        return []
    name, wanted = asked
    split = wanted.source
    assert isinstance(split, SplitSource)
    known = history.held_back(spec)
    if known is not None:
        result, job_id = known
        said = f"grader {result.grader}: {result.why}" if result.rows else result.why
        return [f"eval.sets.{name}: {result.rows} rows are held back, as in job {job_id} ({said})."]
    least = f"{100 * split.share:g} % of the usable rows (20 at least, {split.most} at most)"
    return [
        _of_file(spec, name, split, wanted.seed, settings)
        or f"eval.sets.{name}: prepare holds {least} back to measure with; they are not trained on."
    ]


def left_of(spec: PrepareSpec, rows: int) -> int:
    """Of so many usable rows, those that are not held back to measure with."""
    asked = split_of(spec)
    if asked is None:
        return rows
    split = asked[1].source
    assert isinstance(split, SplitSource)
    count = problems_of(rows, share=split.share, most=split.most)
    return rows - count if count >= FEWEST_HELD_BACK else rows


def _of_file(
    spec: JobSpec, name: str, split: SplitSource, seed: int, settings: Settings
) -> str | None:
    """What becomes of a file's rows, by the first of them; None: it is none, or cannot be read."""
    source = spec.prepare.source
    given = source.questions if isinstance(source, SelfSource) else source
    if not isinstance(given, JsonlSource):
        return None
    folder = settings.adapters_dir / spec.adapter
    try:
        path = dataset_path(given.path, folder, settings.dataset_dirs)
        guess = lengths_of_file(path)
        first, characters = [], 0
        for entry in islice(formats.read(path, format=Format.JSONL), _ROWS_READ):
            check_time()
            if isinstance(entry, Problem):
                continue
            first.append(candidate_of(entry))
            characters += len(entry.question) + len(entry.answer)
            if characters > _CHARACTERS_READ:
                break
    except DataError:  # the job itself says it
        return None
    rows = max(len(first), guess.rows if guess else 0)
    found = hold_back(first, split, seed, ngram=spec.prepare.overlap_ngram, between=check_time)
    if not found.items:
        return f"eval.sets.{name}: no row can be held back, so nothing is measured: {found.why}."
    count = problems_of(rows, share=split.share, most=split.most)
    # source self judges its questions by their own answers
    judged = "" if isinstance(source, SelfSource) else f" Grader {found.grader}: {found.why}."
    return (
        f"eval.sets.{name}: about {count} of {rows} rows of {given.path} are held back to measure with; "
        f"they are not trained on.{judged}"
    )
