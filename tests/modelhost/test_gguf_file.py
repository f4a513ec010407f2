"""Reading and rewriting GGUF heads."""

import random
from pathlib import Path

import llama_cpp
import pytest

from loco_modelhost.store.gguf_file import BrokenGguf, GgufFile, NotGguf


@pytest.fixture(scope="module")
def head(weights_path: Path) -> GgufFile:
    return GgufFile.read(weights_path)


def rewritten(head: GgufFile, folder: Path, key: str, value: str) -> GgufFile:
    path = folder / "copy.gguf"
    with path.open("wb") as out:
        head.copy_with(key, value, out)
    return GgufFile.read(path)


def test_head_agrees_with_llama_cpp(head, weights_path):
    parameters = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(str(weights_path).encode(), parameters)
    assert head.parameters == llama_cpp.llama_model_n_params(model)
    assert head.context_length == llama_cpp.llama_model_n_ctx_train(model)
    assert head.chat_template == llama_cpp.llama_model_chat_template(model, None).decode()
    llama_cpp.llama_model_free(model)
    assert (head.architecture, head.file_type) == ("llama", "Q4_1")
    kinds = {tensor.kind for tensor in head.tensors}
    assert kinds == {"Q4_1", "Q8_0", "F32"}


def test_added_key_changes_nothing_else(head, tmp_path):
    copy = rewritten(head, tmp_path, "locollm.note", "añadido")
    assert copy.metadata == head.metadata | {"locollm.note": "añadido"}
    assert copy.tensors == head.tensors
    with head.path.open("rb") as a, copy.path.open("rb") as b:
        a.seek(head.data)
        b.seek(copy.data)
        assert a.read() == b.read()


def test_replaced_key(head, tmp_path):
    once = rewritten(head, tmp_path, "general.name", "short")
    assert once.metadata == head.metadata | {"general.name": "short"}
    other = tmp_path / "other"
    other.mkdir()
    assert rewritten(once, other, "general.name", "x" * 5000).metadata["general.name"] == "x" * 5000


def test_cut_file_is_refused(head, tmp_path):
    whole = head.path.read_bytes()
    for size in (5, 20, 100, head.infos_end // 2, head.data - 1, head.data, len(whole) - 1):
        path = tmp_path / f"{size}.gguf"
        path.write_bytes(whole[:size])
        with pytest.raises(BrokenGguf):
            GgufFile.read(path)


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\3\4 something else"])
def test_other_files_are_not_gguf(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(NotGguf):
        GgufFile.read(path)


def test_damage_is_an_error_of_ours_or_harmless(head, tmp_path):
    """Any byte of the first keys flipped: never another exception, never a long loop."""
    start = bytearray(head.path.read_bytes()[:4000])
    chance = random.Random(7)
    path = tmp_path / "damaged.gguf"
    for _ in range(300):
        damaged = bytearray(start)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(4, 1200)] = chance.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(BrokenGguf):
            GgufFile.read(path)
