"""The recipes of a server's adapters folder: put from elsewhere, kept, read back.

A recipe is looked at as one on disk would be: every profile resolves, every file it names is there,
every eval set reads. Only then does anything change (`recipes.swap`).
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from loco.contracts.errors import (
    Conflict,
    DataError,
    InvalidRequest,
    LocoError,
    NotFound,
    RecipeChanged,
)
from loco.contracts.files import sha256_of, sync_folder, write_text
from loco.contracts.recipes import RecipeFile, RecipePut, RecipeText, RecipeVersion
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.drafting.draft import check_name
from loco.drafting.lines import looked_through
from loco.grading.eval_items import load_eval_items
from loco.recipes.data_files import check_size, dataset_path, named_files
from loco.recipes.default_sets import FILE
from loco.recipes.documents import LARGEST_BYTES
from loco.recipes.plain import MADE_BY
from loco.recipes.resolve import RECIPE, Recipe, adapter_names, load_recipe, resolve_recipe
from loco.recipes.swap import KEPT, Change, change, unchanging, writable
from loco.settings import CATALOG, Settings

#: Recipes of an adapter that are kept; older ones go.
MOST_KEPT = 200
#: Adapters of a server that recipes can be put for.
MOST_ADAPTERS = 1000
#: Where a recipe is looked at before it changes anything; no adapter can have this name.
INCOMING = ".incoming"
_PUT = "put.json"
#: What stages publish beside a recipe: no data file may take its place.
PUBLISHED = frozenset(
    {"training_data.jsonl", "validation_data.jsonl", "preference_data.jsonl", "samples.jsonl"}
    | {"Modelfile", "gguf", "checkpoints", "runs", "served", "replays", RECIPE}
)


def recipe_text(settings: Settings, name: str) -> RecipeText:
    """An adapter's recipe as it is, with the files beside it that it names.

    Raises:
        UnknownAdapter, InvalidRequest: see `recipes.resolve.load_recipe`.
    """
    folder = settings.adapters_dir / name
    load_recipe(settings.adapters_dir, name)
    with writable(settings.adapters_dir), unchanging(folder):
        text = (folder / RECIPE).read_text(encoding="utf-8")
        files = _files_beside(settings, name)
        version = next((v.version for v in kept_recipes(folder) if v.recipe == text), None)
        return RecipeText(
            name=name,
            version=version,
            etag=_etag(text, files),
            recipe=text,
            files={n: RecipeFile(bytes=f.stat().st_size) for n, f in files.items()},
        )


def data_file(settings: Settings, name: str, file: str) -> Path:
    """A data file that an adapter's recipe names and that lies beside it.

    Raises:
        UnknownAdapter: there is no such adapter.
        NotFound: the recipe names no such file.
    """
    files = _files_beside(settings, name)
    if file not in files:
        raise NotFound(
            f"The recipe of {name!r} names no file {file!r:.120} beside it.",
            param="file",
            hint=f"It names: {', '.join(files) or 'none'}.",
        )
    return files[file]


def versions(
    settings: Settings, name: str, *, before: int | None, limit: int
) -> list[RecipeVersion]:
    """The recipes that were put, newest first."""
    load_recipe(settings.adapters_dir, name)
    kept = kept_recipes(settings.adapters_dir / name)
    return [v for v in kept if before is None or v.version < before][:limit]


def put(
    settings: Settings,
    name: str,
    asked: RecipePut,
    content: Callable[[str], Path],
    *,
    by: str,
    if_match: str | None = None,
) -> tuple[RecipeText, bool]:
    """Puts a recipe and its files in place, all or nothing.

    Args:
        settings: folders.
        name: of the adapter.
        asked: the recipe and its files.
        content: the file of a data set, by its ID or name.
        by: who puts it.
        if_match: the ETag that a recipe that is there must have.

    Returns:
        The recipe, and whether the adapter is new.

    Raises:
        InvalidRequest: the name cannot be one, the recipe cannot be used, or a file has no use.
        DataError: an eval set cannot be read, or a file that the recipe names is not there.
        RecipeChanged: there is a recipe, and `if_match` is not its.
        Conflict: there are too many adapters.
        NotFound: there is no such data set.
    """
    check_name(name)
    root = settings.adapters_dir
    with writable(settings.adapters_dir), _incoming(root, name) as made:
        write_text(made / RECIPE, asked.recipe)
        digests = {}
        for file, data_set in asked.files.items():
            _check_file_name(file)
            shutil.copyfile(content(data_set), made / file)
            digests[file] = sha256_of(made / file)
        _check(settings, name, made, set(asked.files))
        with unchanging(root / name, make=True):
            _check_places(root / name, asked.files)
            is_new = not (root / name / RECIPE).exists()
            if not is_new:
                _check_match(_tag_now(settings, name), if_match, name)
            elif _count_of_put(root) >= MOST_ADAPTERS:
                raise Conflict(
                    f"There are {MOST_ADAPTERS:,} adapters.",
                    hint="Delete the folders of adapters that nobody needs.",
                )
            kept = kept_recipes(root / name)
            # by hand the recipe may have become what is put: then no kept one is that
            known = bool(kept) and kept[0].recipe == asked.recipe
            if is_new or not known or not _is_unchanged(root / name, asked, digests):
                _place(root / name, made, kept, asked, digests, by=by)
    return recipe_text(settings, name), is_new


def _place(
    folder: Path,
    made: Path,
    kept: list[RecipeVersion],
    asked: RecipePut,
    digests: dict[str, str],
    *,
    by: str,
) -> None:
    """Keeps a recipe as the next one of its adapter, and puts it and its files in their places."""
    number = kept[0].version + 1 if kept else 1
    record = RecipeVersion(
        version=number,
        created_at=datetime.now(UTC),
        by=by,
        sha256=hashlib.sha256(asked.recipe.encode()).hexdigest(),
        files=digests,
        recipe=asked.recipe,
    )
    write_text(made / _PUT, record.model_dump_json())
    sync_folder(made)
    place = folder / KEPT / str(number)
    shutil.rmtree(place, ignore_errors=True)  # left by a put that was cut off
    made.rename(place)
    before = kept[0].files if kept else {}
    # a recipe need not name its eval set: FILE stays until somebody replaces it
    gone = {file for file in before if file not in asked.recipe and file != FILE}
    change(
        folder,
        Change(version=number, files=tuple(asked.files), gone=tuple(gone - set(digests))),
    )
    for old in kept[MOST_KEPT - 1 :]:
        shutil.rmtree(folder / KEPT / str(old.version), ignore_errors=True)


def _is_unchanged(folder: Path, asked: RecipePut, digests: Mapping[str, str]) -> bool:
    """Whether an adapter has this recipe and these files already."""
    if (folder / RECIPE).read_text(encoding="utf-8", errors="replace") != asked.recipe:
        return False
    return all(
        (folder / file).is_file() and sha256_of(folder / file) == digest
        for file, digest in digests.items()
    )


def _count_of_put(root: Path) -> int:
    """Adapters but for those that fine-tuning requests made, which have a limit of their own."""
    return sum(not (root / name / MADE_BY).exists() for name in adapter_names(root))


def _tag_now(settings: Settings, name: str) -> str:
    """The ETag of a recipe that is there, whether it can be used or not."""
    text = (settings.adapters_dir / name / RECIPE).read_text(encoding="utf-8", errors="replace")
    try:
        return _etag(text, _files_beside(settings, name))
    except LocoError:
        return _etag(text, {})


def _check_match(now: str, if_match: str | None, name: str) -> None:
    if if_match is not None and if_match.strip().removeprefix("W/").strip('"') == now:
        return
    raise RecipeChanged(
        f"Adapter {name!r} has a recipe"
        + (", but not the one that If-Match names." if if_match else " already."),
        param="If-Match",
        hint=f"Look at it (`loco adapters pull {name} --to DIR`), add your changes, and send "
        "its ETag as If-Match.",
    )


def _check(settings: Settings, name: str, made: Path, files: set[str]) -> None:
    """Looks at a recipe as it would stand: profiles, names, files, eval sets."""
    if len((made / RECIPE).read_bytes()) > LARGEST_BYTES:
        raise InvalidRequest(f"The recipe has more than {LARGEST_BYTES:,} bytes.", param="recipe")
    recipe = load_recipe(made.parent, name)
    used: set[str] = set()
    text = (made / RECIPE).read_text(encoding="utf-8")
    for _, spec in looked_through(made.parent, name, recipe.profile_names, text):
        if isinstance(spec, LocoError):
            raise spec
        for field, path in _named(spec).items():
            used.add(path)
            _check_data(settings, name, made, field, path)
    if unused := sorted(files - used):
        raise InvalidRequest(
            f"files.{unused[0]}: the recipe does not name this file.",
            param=f"files.{unused[0]}",
            hint=f"Its sources (kind jsonl) name: {', '.join(sorted(used)) or 'none'}.",
        )
    _check_model_names(settings, recipe)


def _check_data(settings: Settings, name: str, made: Path, field: str, path: str) -> None:
    """A file that the recipe names is put with it, or there; an eval set reads."""
    if (made / path).is_file():
        file = dataset_path(path, made)
    else:
        try:
            file = dataset_path(path, settings.adapters_dir / name, settings.dataset_dirs)
        except DataError as error:
            raise DataError(
                f"{field}: {path!r} was not sent with the recipe and is not on the server.",
                param="files",
                hint=f"Upload it (POST /datasets) and name it: files: {{{path!r}: DATASET_ID}}. "
                "`loco adapters push` does both.",
            ) from error
    check_size(file, field)
    if field.startswith("eval.sets"):
        load_eval_items(file)


def _check_model_names(settings: Settings, recipe: Recipe) -> None:
    """No two adapters serve under one name: each would be the other's `latest`."""
    mine = _model_names(recipe)
    for other in adapter_names(settings.adapters_dir):
        if other == recipe.name:
            continue
        try:
            theirs = _model_names(load_recipe(settings.adapters_dir, other))
        except LocoError:
            continue  # a recipe that cannot be used serves nothing
        if shared := sorted(mine & theirs):
            raise InvalidRequest(
                f"model_name: {shared[0]!r} is already the model of adapter {other!r}.",
                param="model_name",
                hint=f"Choose another, like locollm-{recipe.name}.",
            )


def _model_names(recipe: Recipe) -> set[str]:
    named = {str(p["model_name"]) for p in recipe.profiles.values() if p.get("model_name")}
    own = {f"{recipe.model_name}-{p}" for p in recipe.profiles}
    return {recipe.model_name, *named, *own}


def _check_file_name(file: str) -> None:
    if file in PUBLISHED or file.casefold() in {p.casefold() for p in PUBLISHED}:
        raise InvalidRequest(
            f"files.{file}: stages write a file with this name beside the recipe.",
            param=f"files.{file}",
            hint="Choose another name, like rows.jsonl.",
        )


def _check_places(folder: Path, files: Iterable[str]) -> None:
    """Refuses a file where something else lies: the change would fail half-way, and each time again."""
    for file in files:
        if (folder / file).exists() and not (folder / file).is_file():
            raise InvalidRequest(
                f"files.{file}: {folder.name}/{file} on the server is not a file.",
                param=f"files.{file}",
                hint="Choose another name for the file.",
            )


def _named(spec: JobSpec) -> dict[str, str]:
    """The files that sources of kind jsonl name, by field."""
    parts = (spec.part(stage) for stage in (Stage.PREPARE, Stage.EVAL))
    found = {field: path for part in parts for field, path in named_files(part).items()}
    return {field: path for field, path in found.items() if field.endswith(".path")}


def _files_beside(settings: Settings, name: str) -> dict[str, Path]:
    """The data files of an adapter's own folder that its recipe names."""
    folder = settings.adapters_dir / name
    recipe = load_recipe(settings.adapters_dir, name)
    found: dict[str, Path] = {}
    for profile in recipe.profile_names:
        spec = resolve_recipe(settings.adapters_dir, name, profile)
        for path in _named(spec).values():
            if re.fullmatch(r"[^/]+", path) and (folder / path).is_file():
                found[path] = dataset_path(path, folder)
    return dict(sorted(found.items()))


def _etag(text: str, files: dict[str, Path]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, file in files.items():
        found = file.stat()
        digest.update(f"\0{name}\0{found.st_size}\0{found.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def kept_recipes(folder: Path) -> list[RecipeVersion]:
    """What was put, newest first; a folder without its record was cut off before it counted."""
    numbers = [int(p.name) for p in (folder / KEPT).glob("[0-9]*") if p.name.isdecimal()]
    found = []
    for number in sorted(numbers, reverse=True):
        record = folder / KEPT / str(number) / _PUT
        if record.is_file():
            found.append(RecipeVersion.model_validate_json(record.read_bytes()))
    return found


@contextmanager
def _incoming(root: Path, name: str) -> Iterator[Path]:
    """A folder like the adapters folder, with the catalog and this adapter alone."""
    place = root / INCOMING / uuid4().hex
    (place / name).mkdir(parents=True)
    try:
        (place / CATALOG).symlink_to((root / CATALOG).absolute())
        yield place / name
    finally:
        shutil.rmtree(place, ignore_errors=True)
