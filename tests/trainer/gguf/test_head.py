"""What ggml's reader says of a GGUF is what PyPI's says."""

from collections import Counter
from pathlib import Path

import pytest
from gguf import GGUFReader

from loco.contracts.errors import ExportFailed
from loco_trainer.bases import smollm2
from loco_trainer.gguf import head as gguf_head


@pytest.fixture(scope="module")
def whole() -> Path:
    return smollm2.wheel_gguf()


@pytest.mark.slow
def test_it_says_what_the_reference_reader_says(whole: Path) -> None:
    contents, reader = gguf_head.read(whole), GGUFReader(whole)
    assert contents.tensor_types == Counter(t.tensor_type.name for t in reader.tensors)
    assert contents.tensors == len(reader.tensors)
    assert contents.architecture == reader.fields["general.architecture"].contents() == "llama"
    assert contents.chat_template == reader.fields["tokenizer.chat_template"].contents()
    assert contents.vocabulary == len(reader.fields["tokenizer.ggml.tokens"].data)
    embedding = next(t for t in reader.tensors if t.name == "token_embd.weight")
    assert contents.embedding_rows == embedding.shape[1] == contents.vocabulary


@pytest.mark.parametrize("length", [0, 3, 1000, 100_000])
def test_what_is_cut_off_or_no_gguf_is_refused(whole: Path, length: int, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with whole.open("rb") as file:
        cut.write_bytes(file.read(length))
    with pytest.raises(ExportFailed, match=r"cannot read cut\.gguf"):
        gguf_head.read(cut)
    other = tmp_path / "other.gguf"
    other.write_text("{}" * 100)
    with pytest.raises(ExportFailed):
        gguf_head.read(other)
    with pytest.raises(ExportFailed):
        gguf_head.read(tmp_path / "missing.gguf")


def test_a_file_without_template_vocabulary_and_embedding_says_so(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    path = tmp_path / "bare.gguf"
    writer = GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    contents = gguf_head.read(path)
    assert contents.architecture == "llama"
    assert contents.chat_template is None
    assert (contents.tensors, contents.embedding_rows, contents.vocabulary) == (0, 0, 0)
