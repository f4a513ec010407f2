"""Any name of a file: what is opened lies inside its folder, whatever links lie there, or our error."""

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loco.cli.artifacts import _below
from loco.client.http import checked_server, path_of
from loco.contracts.artifacts import Artifact
from loco.contracts.errors import LocoError
from loco.recipes.data_files import dataset_path
from loco.running.verify import verified

SECRET = b"secret"
PARTS = ["..", ".", "", "a", "rows.jsonl", "link", "loop", "out", "%2e%2e", "%2f", "~", "\0", "\\", "..\\",
         "C:", "\ud800", "a" * 300, "é", "\u200b", "\uff0f..", " ", "\n", "-", "secret"]  # fmt: skip
NAMES = st.lists(st.sampled_from(PARTS) | st.text(max_size=8), max_size=8).map("/".join) | st.text(
    max_size=40
)


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    """A folder with files, and with links out of it and in a circle; a secret lies beside it."""
    root = tmp_path_factory.mktemp("box")
    inside = root / "inside"
    (inside / "a").mkdir(parents=True)
    (root / "secret").write_bytes(SECRET)
    for file in (inside / "rows.jsonl", inside / "a" / "rows.jsonl"):
        file.write_bytes(b"{}\n")
    (inside / "link").symlink_to("..")
    (inside / "loop").symlink_to("loop")
    (inside / "out").symlink_to(root / "secret")
    (inside / "fine").symlink_to("rows.jsonl")
    return inside


@given(name=NAMES | NAMES.map(lambda n: "/" + n))
@example(name="link/secret")
@example(name="../secret")
@example(name="loop/a")
@example(name="out")
@example(name="a/../../secret")
@example(name="a/" * 3000)
@example(name="a" * 5000)
def test_no_data_file_lies_outside(box, name):
    try:
        found = dataset_path(name, box)
    except LocoError:
        return
    assert found.resolve().is_relative_to(box.resolve())
    assert found.read_bytes() != SECRET


@given(path=NAMES | NAMES.map(lambda n: "/" + n))
@example(path="link/secret")
@example(path="../secret")
@example(path="out")
@example(path="loop")
@example(path="a" * 5000)
@example(path="\0")
def test_no_artifact_lies_outside(box, path):
    # as if the record had been read: a path that is none below a folder is refused before
    artifact = Artifact.model_construct(
        name="x", stage=None, path=path, size=6, sha256="0" * 64, media_type="text/plain"
    )
    try:
        verified(box, artifact)
    except LocoError as error:
        # a file outside would be found changed, as nothing has this digest
        assert error.code == "not_found" or (box / path).resolve().is_relative_to(box.resolve())
        return
    pytest.fail("nothing has that digest")


@given(name=NAMES)
def test_a_download_stays_in_its_folder(box, name):
    artifact = Artifact.model_construct(
        name=name, stage=None, path="x", size=1, sha256="0" * 64, media_type="text/plain"
    )
    try:
        target = _below(box, artifact)
    except LocoError:
        return
    assert target.is_relative_to(box.resolve() / "inputs")


@given(segments=st.lists(NAMES, min_size=1, max_size=3))
def test_a_segment_of_an_address_stays_one(segments):
    try:
        path = path_of(*segments)
    except LocoError:
        return
    assert path.count("/") == len(segments)
    assert not any(part in ("", ".", "..") for part in path.split("/")[1:])
    assert path.isascii()


@given(server=st.text(max_size=40) | NAMES.map(lambda n: "http://" + n))
def test_an_address_is_http_or_refused(server):
    try:
        url = checked_server(server)
    except LocoError:
        return
    assert url.startswith(("http://", "https://"))
    assert not url.endswith("/")
    os.fsencode(url)
