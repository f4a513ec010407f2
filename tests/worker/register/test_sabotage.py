"""What was tampered with between export and the server is named."""

import struct
from pathlib import Path
from typing import Any

import pytest
from proofs import (
    EXPORTED,
    BlobOf,
    Body,
    Register,
    Tampering,
    evidence,
    failures,
    from_other,
    promoted,
    said,
)

from loco.contracts.errors import RegistrationFailed
from loco.contracts.files import sha256_of
from loco.contracts.serving import REFERENCE
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.serving.host import OllamaHost, full_name
from loco_modelhost.store.gguf_file import GgufFile
from loco_worker.ollama.bases import fetch_base, wheel_gguf

pytestmark = [pytest.mark.redis, pytest.mark.slow]


def test_a_wrong_template_is_named(
    register_it: Register,
    tampering: Tampering,
    blob_of: BlobOf,
    exported: Any,
    tmp_path: Path,
) -> None:
    head = GgufFile.read(exported.trained)
    wrong = head.chat_template.replace("'<|im_end|>' + '\n'", "'<|im_end|>' + ' \n'")
    assert wrong != head.chat_template
    with (tmp_path / "x.gguf").open("wb") as file:
        head.copy_with("tokenizer.chat_template", wrong, file)
    url = tampering(create=from_other(blob_of(tmp_path / "x.gguf")))
    failed = failures(register_it, tmp_path, ollama_host=url)
    assert {"template", "rendered_prompt"} <= failed


def test_no_template_at_all_is_named(
    register_it: Register, tampering: Tampering, blob_of: BlobOf, exported: Any, tmp_path: Path
) -> None:
    content = exported.trained.read_bytes()
    assert b"tokenizer.chat_template" in content
    bare = tmp_path / "x.gguf"
    bare.write_bytes(content.replace(b"tokenizer.chat_template", b"tokenizer.chat_templatX", 1))
    url = tampering(create=from_other(blob_of(bare)))
    with pytest.raises(RegistrationFailed, match="template: no chat template"):
        register_it(ollama_host=url)


def test_a_missing_stop_string_is_named(
    register_it: Register, tampering: Tampering, tmp_path: Path
) -> None:
    def create(body: Body) -> Body:
        del body["parameters"]["stop"]
        return body

    assert failures(register_it, tmp_path, ollama_host=tampering(create=create)) == {"parameters"}
    assert "stop is missing instead of ['<|im_end|>']" in said(tmp_path, "parameters")


def test_other_parameters_and_a_lost_system_prompt_are_named(
    register_it: Register, tampering: Tampering, tmp_path: Path
) -> None:
    def create(body: Body) -> Body:
        del body["system"]  # the template writes the same one by itself: nothing else notices
        body["parameters"].update(num_ctx=512, num_predict=99, temperature=0.8)
        return body

    assert failures(register_it, tmp_path, ollama_host=tampering(create=create)) == {"parameters"}
    seen = said(tmp_path, "parameters")
    for words in (
        "num_ctx is 512 instead of 1024",
        "num_predict is 99 instead of 128",
        "temperature is 0.8 instead of 0",
        "the system prompt differs from character 0",
    ):
        assert words in seen


def test_a_swapped_tokenizer_is_named(
    register_it: Register, tampering: Tampering, blob_of: BlobOf, exported: Any, tmp_path: Path
) -> None:
    """Two tokens change places: same sizes, same shapes, other words."""
    path = tmp_path / "x.gguf"
    path.write_bytes(swap_tokens(exported.trained.read_bytes(), "Ġthe", "Ġand"))
    assert sorted(path.read_bytes()[: 10**7]) == sorted(exported.trained.read_bytes()[: 10**7])
    url = tampering(create=from_other(blob_of(path)))
    assert "vocabulary" in failures(register_it, tmp_path, ollama_host=url)


def test_a_gguf_cut_after_export_is_named_before_anything_is_sent(
    register_it: Register, exported: Any, tmp_path: Path, model_host: str
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(exported.trained.read_bytes()[:-1000])
    told = {"sha256": sha256_of(exported.trained), "size": exported.trained.stat().st_size}
    with OllamaHost(model_host) as host:
        before = host.digests()
        failed = failures(
            register_it,
            tmp_path,
            files={**exported.files, EXPORTED: cut},
            results={Stage.EXPORT: told},
            job_id="20261122-160000-aaaaaa",
        )
        assert failed == {"exported"}
        assert host.digests() == before
        assert not host.has_blob(f"sha256:{sha256_of(cut)}")


def test_a_truncated_gguf_that_the_server_refuses_is_named(
    register_it: Register, exported: Any, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(exported.trained.read_bytes()[:-1000])
    failed = failures(register_it, tmp_path, files={**exported.files, EXPORTED: cut})
    assert failed == {"created"}
    assert "tensor data ends at byte" in evidence(tmp_path).checks[-1].seen


def test_a_stale_blob_is_named(
    register_it: Register, tampering: Tampering, blob_of: BlobOf, exported: Any, tmp_path: Path
) -> None:
    """The server returns the weights of what serves now under the new name."""
    old = blob_of(exported.base)
    files = {**exported.files, EXPORTED: exported.base}
    del files[f"export/{REFERENCE}"]
    serves = promoted(register_it(files=files, job_id="20261101-000000-aaaaaa"))
    url = tampering(create=from_other(old))
    failed = failures(register_it, tmp_path, ollama_host=url, promoted=serves)
    assert {"digest_new", "greedy_answers"} <= failed
    assert "the weights of version 1, locollm-math" in said(tmp_path, "digest_new")


def test_the_base_instead_of_the_merged_model_is_named(
    register_it: Register, tampering: Tampering, blob_of: BlobOf, exported: Any, tmp_path: Path
) -> None:
    """By its answers alone, where no base is there to compare with."""
    url = tampering(create=from_other(blob_of(exported.base)))
    failed = failures(register_it, tmp_path, ollama_host=url, job_id="20261122-160000-cccccc")
    assert "greedy_answers" in failed
    assert failed <= {"greedy_answers", "ends_with_stop", "probe"}


def test_the_weights_of_the_exported_base_are_named(
    register_it: Register, tampering: Tampering, blob_of: BlobOf, exported: Any, tmp_path: Path
) -> None:
    """Whatever it answers: an adapter may change little."""
    files = {**exported.files, "export/gguf/base.Q4_K_M.gguf": exported.base}
    url = tampering(create=from_other(blob_of(exported.base)))
    job = "20261122-160000-bbbbbb"
    assert "digest_new" in failures(register_it, tmp_path, ollama_host=url, files=files, job_id=job)
    assert f"it is the base's: the weights of locollm-math-tiny:{job}-base" in said(
        tmp_path, "digest_new"
    )


def test_the_weights_of_the_served_base_are_named(
    register_it: Register,
    tampering: Tampering,
    blob_of: BlobOf,
    tiny: JobSpec,
    model_host: str,
    heard: Any,
    tmp_path: Path,
) -> None:
    base = tiny.register_.base_model
    with OllamaHost(model_host) as host:
        if full_name(base.ollama) not in host.digests():
            fetch_base(host, base, heard.emit)
    url = tampering(create=from_other(blob_of(wheel_gguf())))
    assert "digest_new" in failures(register_it, tmp_path, ollama_host=url)
    assert f"it is the base's: the weights of {base.ollama}" in said(tmp_path, "digest_new")


def swap_tokens(content: bytes, one: str, other: str) -> bytes:
    """The GGUF with two tokens of equal length exchanged."""
    a, b = one.encode(), other.encode()
    assert len(a) == len(b)
    start = content.index(b"tokenizer.ggml.tokens")
    items = [struct.pack("<Q", len(token)) + token for token in (a, b)]
    first, second = (content.index(item, start) for item in items)
    changed = bytearray(content)
    changed[first : first + len(items[0])] = items[1]
    changed[second : second + len(items[1])] = items[0]
    return bytes(changed)
