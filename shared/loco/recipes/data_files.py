"""The data files that a recipe or request names: which, where they may lie, what a stage reads.

What stands in them is `loco.datasets.rows`' matter, and where uploads lie that of `loco.datasets.store`.
"""

import stat
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from loco.contracts.errors import DataError
from loco.contracts.files import sha256_of
from loco.contracts.sources import DatasetSource, HuggingFaceSource, JsonlSource, SelfSource
from loco.contracts.specs import EvalSpec, Inputs, JobSpec, PrepareSpec
from loco.contracts.stages import Stage


def named_files(part: Any) -> dict[str, str]:
    """The files that the spec of a stage names: field of the request to file name."""
    sources = _sources(part).items()
    return {f"{f}.path": s.path for f, s in sources if isinstance(s, JsonlSource)} | {
        f"{f}.dataset": s.file for f, s in sources if isinstance(s, DatasetSource)
    }


def uploads_of(spec: JobSpec) -> set[str]:
    """Names of the inputs that are rows somebody uploaded."""
    every = (s for stage in Stage for s in _sources(spec.part(stage)).values())
    return {s.file for s in every if isinstance(s, DatasetSource)}


def named_data_sets(part: Any) -> dict[str, str]:
    """The data sets of a hub that the spec of a stage names: field of the request to name."""
    found = _sources(part).items()
    return {f"{f}.dataset": s.dataset for f, s in found if isinstance(s, HuggingFaceSource)}


def _sources(part: Any) -> dict[str, Any]:
    """The sources of rows and problems of a stage, by the field of the request they stand in."""
    sources: dict[str, Any] = {}
    if isinstance(part, PrepareSpec):
        if isinstance(part.source, SelfSource):
            sources["prepare.source.questions"] = part.source.questions
        else:
            sources["prepare.source"] = part.source
        if part.validation_source is not None:
            sources["prepare.validation_source"] = part.validation_source
        sources |= {f"eval.sets.{name}.source": s.source for name, s in part.eval_sets.items()}
    if isinstance(part, EvalSpec):
        sources |= {f"eval.sets.{name}.source": s.source for name, s in part.sets.items()}
    return sources


#: Bytes of a file of rows, and of an eval set, that a job may read; of a hub's data set its columns in use.
LARGEST_ROWS = 2 * 2**30
LARGEST_SET = 64 * 2**20


def largest(field: str) -> int:
    """Bytes of rows or problems that a field of the request may name."""
    return LARGEST_SET if field.startswith("eval.sets") else LARGEST_ROWS


def check_size(file: Path, field: str) -> Path:
    """The file, shown by its size alone to be one that a job can read.

    Args:
        file: a regular file.
        field: the field of the request that names it.

    Raises:
        DataError: it is larger than what its field may name.
    """
    size = file.stat().st_size
    if size > (most := largest(field)):
        raise DataError(
            f"{file.name} has {size:,} bytes. A file for {field} may have {most:,}.",
            param=field,
            hint="Use a part of it.",
        )
    return file


def data_file(
    path: str, inputs: Inputs, field: str, between: Callable[[], object] = lambda: None
) -> Path:
    """The file a stage reads for a name: the bytes frozen at submit, verified.

    Without frozen inputs (a job of an earlier release, a spec written by hand) it is the file that
    lies there now.

    Args:
        path: as the source names it.
        inputs: of the attempt.
        field: the field of the request that names it.
        between: called while it is read; what it raises ends that.

    Raises:
        DataError: the frozen copy is gone or was changed, or the file is too large; or see `dataset_path`.
    """
    frozen = inputs.frozen.get(path)
    if frozen is None:
        return check_size(dataset_path(path, inputs.adapter_dir, inputs.dataset_dirs), field)
    file = Path(frozen.path)
    if file.is_file():
        check_size(file, field)  # before it is read
    found = sha256_of(file, between) if file.is_file() else None
    if found != frozen.sha256:
        what = "is gone" if found is None else f"now has SHA-256 {found}, not {frozen.sha256}"
        raise DataError(
            f"{path!r} as it was when the job was accepted {what}: {file}.",
            param="path",
            hint="Submit the job again. It then uses the file as it is now.",
        )
    return file


def dataset_path(path: str, adapter_dir: Path, dataset_dirs: Iterable[Path] = ()) -> Path:
    """The file a name means: in the adapter's folder, else in one of the data set folders.

    A request must not read the server's other files, so nothing outside these folders is opened,
    whether by an absolute path, by `..` or through a symbolic link.

    Args:
        path: relative, or absolute and below one of the folders.
        adapter_dir: the folder of the recipe.
        dataset_dirs: LOCO_DATASET_DIRS.

    Raises:
        DataError: no such file, one outside the folders, or something else than a file.
    """
    folders = [folder.resolve() for folder in (adapter_dir, *dataset_dirs)]
    if not path.isprintable() or not path.strip() or ".." in PurePosixPath(path).parts:
        raise DataError(
            f"{path!r} is not allowed as a file name here.",
            param="path",
            hint="Name a file in the adapter's folder, without `..`.",
        )
    outside = irregular = False
    for folder in folders:
        # joining an absolute path gives that path: it has to lie below the folder all the same
        try:
            file = (folder / path).resolve()
            mode = file.stat().st_mode if file.is_relative_to(folder) else None
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, RuntimeError):  # a loop of links, a name that is too long
            irregular = True
            continue
        if mode is None:
            outside = True
        elif stat.S_ISREG(mode):
            return file
        else:
            irregular = True
    if irregular:
        raise DataError(
            f"{path!r} is not a regular file.",
            param="path",
            hint="Name a file. Folders, pipes and devices are not allowed.",
        )
    where = ", ".join(str(f) for f in folders)
    raise DataError(
        f"{path!r} is outside the folders that data may come from."
        if outside
        else f"No data file {path!r}. Looked in: {where}.",
        param="path",
        hint="Put the file in the adapter's folder, or add its folder to LOCO_DATASET_DIRS.",
    )
