"""What is wrong with a task before any GPU time: its recipe, its rows, its eval set.

Each finding names the file and its line. How the model will see the rows is `looking`'s matter.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from loco.contracts.datasets import Layout
from loco.contracts.errors import DataError, InvalidRequest, LocoError
from loco.contracts.evaluation import EvalSet
from loco.contracts.looks import MOST_ROWS, MOST_TURNS, LookRequest, LookRow
from loco.contracts.requests import DEFAULT_PROFILE
from loco.contracts.sources import JsonlSource, SplitSource
from loco.contracts.specs import JobSpec, PrepareSpec
from loco.datasets import formats
from loco.datasets.formats import Problem
from loco.datasets.overlap import OverlapIndex, normalise
from loco.datasets.rows import Row
from loco.drafting import folders
from loco.drafting.lines import looked_through
from loco.grading.eval_items import load_eval_items
from loco.grading.held_back import candidate_of, hold_back
from loco.grading.significance import smallest_difference
from loco.recipes.data_files import dataset_path
from loco.recipes.default_sets import default_sets, split_of
from loco.recipes.resolve import BROUGHT, RECIPE, Recipe, merge
from loco.settings import CATALOG

#: Findings of a kind that are listed; all are counted.
LISTED = 10
#: Characters of rows that are looked at: what one request may carry.
_MOST_CHARACTERS = 500_000


@dataclass
class Checked:
    """What was found."""

    #: What must be changed, a sentence each.
    problems: list[str] = field(default_factory=list)
    #: What may be as it should, and is worth a look.
    notes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    #: Problems of the eval sets.
    items: int = 0
    #: None: the recipe does not resolve here.
    spec: JobSpec | None = None


def check(
    folder: Path, name: str, profile: str = DEFAULT_PROFILE, *, catalog: Path | None = None
) -> Checked:
    """Looks through an adapter's folder.

    Args:
        folder: of the adapter.
        name: of the adapter.
        profile: whose rows are looked at; all of them must resolve.
        catalog: of base models, where none lies beside the folder. Without any the fields are not looked at.

    Raises:
        InvalidRequest: there is no recipe, or no such profile.
    """
    found = Checked()
    text = folders.recipe_of(folder, name)
    recipe = folders.parsed(text, str(folder / RECIPE))
    if profile not in recipe.profile_names:
        raise InvalidRequest(
            f"{name} has no profile {profile!r}. Profiles: {', '.join(recipe.profile_names)}.",
            param="--profile",
        )
    beside = folder.parent / CATALOG
    known = beside if beside.is_file() else catalog
    if known is None:
        found.notes.append(
            f"There is no {CATALOG} here, so the server checks the recipe's fields when you "
            "push it."
        )
        _check_raw(found, recipe, profile, folder)
        return found
    with _shelf(folder, name, known) as adapters_dir:
        for each, looked in looked_through(adapters_dir, name, recipe.profile_names, text):
            if isinstance(looked, LocoError):
                found.problems.append(f"{looked.message} {looked.hint or ''}".strip())
            elif each == profile:
                found.spec = looked
    if found.spec is not None:
        _check_data(found, found.spec.prepare, found.spec.eval.sets, folder)
    return found


def fault_in(folder: Path, name: str, text: str, catalog: Path) -> LocoError | None:
    """The first fault of a recipe's fields; rows and eval sets are not looked at.

    Args:
        folder: of the adapter.
        name: of the adapter.
        text: of its recipe.
        catalog: of base models.
    """
    profiles = folders.parsed(text, str(folder / RECIPE)).profile_names
    with _shelf(folder, name, catalog) as adapters_dir:
        looked = looked_through(adapters_dir, name, profiles, text)
        return next((found for _, found in looked if isinstance(found, LocoError)), None)


@contextmanager
def _shelf(folder: Path, name: str, catalog: Path) -> Iterator[Path]:
    """A folder in which the recipe stands beside the catalog, as on a server."""
    if catalog.parent == folder.parent and folder.name == name:
        yield folder.parent
        return
    with tempfile.TemporaryDirectory() as made:
        shutil.copyfile(catalog, Path(made) / CATALOG)
        (Path(made) / name).symlink_to(folder.absolute())
        yield Path(made)


def _check_raw(found: Checked, recipe: Recipe, profile: str, folder: Path) -> None:
    """Looks at rows and problems where the rest of the recipe cannot be resolved."""
    own = recipe.profiles.get(profile, {})
    try:
        written = merge(recipe.prepare, own.get("prepare") or {})
        if written.get("source") is None:
            written["source"] = BROUGHT
        prepare = PrepareSpec.model_validate(written)
        sets = merge(recipe.eval, own.get("eval") or {}).get("sets")
        if sets is None:
            read = default_sets(prepare.source, folder)
        else:
            read = {n: EvalSet.model_validate(each) for n, each in sets.items() if each is not None}
        kept_out = {n: s for n, s in read.items() if isinstance(s.source, SplitSource)}
        prepare = prepare.model_copy(update={"eval_sets": kept_out})
    except (ValidationError, AttributeError) as error:
        words = str(error).splitlines()[0]
        found.problems.append(f"{RECIPE}: prepare or eval.sets cannot be read: {words}")
        return
    _check_data(found, prepare, read, folder)


def _check_data(
    found: Checked, prepare: PrepareSpec, sets: Mapping[str, EvalSet], folder: Path
) -> None:
    index = OverlapIndex(prepare.overlap_ngram)
    for name, wanted in sets.items():
        if not isinstance(wanted.source, JsonlSource):
            continue
        try:
            items = load_eval_items(dataset_path(wanted.source.path, folder))
        except DataError as error:
            found.problems.append(f"eval.sets.{name}: {error.message} {error.hint or ''}".strip())
            continue
        for item in items:
            index.add(f"{name}, problem {item.id}", item.question)
        found.items += len(items)
        if smallest_difference(len(items)) is None:
            found.notes.append(
                f"eval.sets.{name}: {len(items)} problems are too few to prove anything."
            )
    if not isinstance(prepare.source, JsonlSource):
        if (split := split_of(prepare)) is not None:
            found.notes.append(f"eval.sets.{split[0]}: prepare holds rows back to measure with.")
        found.notes.append(
            "The recipe has no prepare.source, so each job must bring its rows."
            if prepare.source == BROUGHT
            else f"Rows come from source {prepare.source.kind}. Stage prepare checks them."
        )
        return
    _check_rows(found, prepare.source.path, folder, index)
    _hold_back(found, prepare)
    wanted_rows = prepare.examples
    if found.rows and len(found.rows) < wanted_rows:
        found.notes.append(
            f"prepare.examples is {wanted_rows}, but only {len(found.rows)} rows can be used."
        )


def _hold_back(found: Checked, prepare: PrepareSpec) -> None:
    """Takes the rows out that prepare will hold back to measure with, and says how they are judged."""
    asked = split_of(prepare)
    if asked is None or not found.rows:
        return
    name, wanted = asked
    assert isinstance(wanted.source, SplitSource)
    held = hold_back(
        [candidate_of(row) for row in found.rows],
        wanted.source,
        wanted.seed,
        ngram=prepare.overlap_ngram,
    )
    count = len(held.items)
    if not count:
        found.notes.append(
            f"eval.sets.{name}: no row can be held back to measure with, so nothing is measured: "
            f"{held.why}."
        )
        return
    gone = held.places | held.alike
    found.rows = [row for place, row in enumerate(found.rows) if place not in gone]
    found.items += count
    alike = f" {len(held.alike)} rows overlap them and are left out." if held.alike else ""
    found.notes.append(
        f"eval.sets.{name}: {count} rows are held back to measure with. Grader {held.grader}: {held.why}."
        f"{alike}"
    )
    least = smallest_difference(count)
    found.notes.append(
        f"eval.sets.{name}: with {count} problems "
        + (
            f"a gain of {100 * least:.0f} points or more can be shown."
            if least
            else "nothing can be proven."
        )
    )


def _check_rows(found: Checked, path: str, folder: Path, index: OverlapIndex) -> None:
    seen: dict[str, int] = {}
    counted: Counter[str] = Counter()

    def tell(kind: str, words: str) -> None:
        counted[kind] += 1
        if counted[kind] <= LISTED:
            found.problems.append(words)

    try:
        for entry in formats.read(dataset_path(path, folder)):
            if isinstance(entry, Problem):
                tell("bad", f"{path}, {entry}")
                continue
            question = normalise(entry.question)
            if (first := seen.setdefault(question, entry.line)) != entry.line:
                tell("duplicate", f"{path}, line {entry.line}: the same question as line {first}.")
            elif (match := index.match(entry.question)) is not None:
                tell(
                    "overlap",
                    f"{path}, line {entry.line}: overlaps {match.item} ({match.rule}), so "
                    "it is left out.",
                )
            elif entry.layout is not Layout.PAIRS:
                found.rows.append(entry)
    except DataError as error:
        found.problems.append(f"prepare.source: {error.message} {error.hint or ''}".strip())
    for kind, count in counted.items():
        if count > LISTED:
            found.problems.append(f"{path}: {count - LISTED} more of kind {kind}.")


def request_of(found: Checked) -> LookRequest | None:
    """What to ask the training environment; None: there is nothing to ask."""
    if found.spec is None or not found.rows:
        return None
    chosen: list[LookRow] = []
    longer: list[str] = []
    characters = 0
    for row in found.rows[:MOST_ROWS]:
        if len(row.turns) > MOST_TURNS:
            longer.append(str(row.line))
            continue
        characters += sum(len(turn["content"]) for turn in row.turns)
        if chosen and characters > _MOST_CHARACTERS:
            break
        chosen.append(LookRow(line=row.line, conversations=row.turns))
    if longer:
        lines = ", ".join(longer[:LISTED]) + (", …" if len(longer) > LISTED else "")
        found.notes.append(
            f"The tokens of rows with more than {MOST_TURNS} turns were not checked (lines "
            f"{lines})."
        )
    if not chosen:
        return None
    train = found.spec.train
    return LookRequest(
        base_model=train.base_model.name, max_length=train.max_length, rows=tuple(chosen)
    )
