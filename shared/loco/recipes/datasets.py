"""Where the data files that a recipe or request names may lie."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from loco.contracts.errors import DataError


def dataset_path(path: str, adapter_dir: Path, dataset_dirs: Iterable[Path] = ()) -> Path:
    """The file a name means: in the adapter's folder, else in one of the data set folders.

    A request must not read the server's other files, so nothing outside these folders is opened,
    whether by an absolute path, by `..` or through a symbolic link.

    Args:
        path: relative, or absolute and below one of the folders.
        adapter_dir: the folder of the recipe.
        dataset_dirs: LOCO_DATASET_DIRS.

    Raises:
        DataError: no such file, or one outside the folders.
    """
    folders = [folder.resolve() for folder in (adapter_dir, *dataset_dirs)]
    if "\0" in path or not path.strip() or ".." in PurePosixPath(path).parts:
        raise DataError(
            f"{path!r} is not a file name that may be used here.",
            param="path",
            hint="Name a file in the adapter's folder, without `..`.",
        )
    outside = False
    for folder in folders:
        # joining an absolute path gives that path: it has to lie below the folder all the same
        file = (folder / path).resolve()
        if not file.is_relative_to(folder):
            outside = True
        elif file.is_file():
            return file
    where = ", ".join(str(f) for f in folders)
    raise DataError(
        f"{path!r} lies outside the folders data may come from."
        if outside
        else f"No data file {path!r}. Looked in: {where}.",
        param="path",
        hint="Put the file in the adapter's folder, or name its folder in LOCO_DATASET_DIRS.",
    )
