"""Stage export on the toy model, and what it refuses."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from tokenizers.normalizers import NFC
from transformers import AutoModelForCausalLM, AutoTokenizer

from loco.contracts.errors import DiskFull, ExportFailed
from loco.contracts.files import sha256_of
from loco.contracts.serving import REFERENCE, ReferencePrompt, ServingReference
from loco.contracts.specs import BaseModelSpec, ExportSpec, Inputs, TrainSpec
from loco.recipes import resolve as recipes
from loco.stage.program import Stopped
from loco_trainer import export, train
from loco_trainer.bases import smollm2 as smollm2_wheel
from loco_trainer.data import served
from loco_trainer.data.template import Template
from loco_trainer.gguf import folder as folders
from loco_trainer.gguf import head as gguf_head
from loco_trainer.gguf import reference, served_base, writing
from loco_trainer.gguf.check import Answered, GgufModel, loaded
from loco_trainer.machine import disk
from loco_trainer.machine.threads import usable_cpus

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained_cache() -> dict[str, Path]:
    return {}


@pytest.fixture
def trained(
    toy_spec: TrainSpec,
    inputs: Inputs,
    tmp_path_factory: pytest.TempPathFactory,
    recorder: Any,
    trained_cache: dict[str, Path],
) -> Inputs:
    """The inputs of export."""
    if not trained_cache:
        out = tmp_path_factory.mktemp("trained")
        # one of its own: what a test hears is its export's alone, whichever test comes first
        result = train.run(toy_spec, inputs, out, type(recorder)())
        trained_cache |= {f"train/{name}": out / path for name, path in result.files.items()}
    return inputs.model_copy(update={"files": trained_cache})


@pytest.fixture
def weights() -> Path:
    return smollm2_wheel.wheel_gguf()


@pytest.fixture
def spec(toy: BaseModelSpec) -> ExportSpec:
    return ExportSpec(
        base_model=toy,
        model_name="locollm-toy",
        quantization="F16",
        format="merged",
        num_ctx=512,
    )


@pytest.mark.slow
def test_an_f16_export_continues_as_the_merged_model(
    spec: ExportSpec, trained: Inputs, toy_dir: Path, tmp_path: Path, recorder: Any
) -> None:
    result = export.run(spec, trained, tmp_path, recorder)
    gguf = tmp_path / result.files["gguf/unsloth.F16.gguf"]
    folder = trained.files["train/checkpoints/adapter_model.safetensors"].parent
    base = AutoModelForCausalLM.from_pretrained(toy_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder).merge_and_unload()
    tokenizer = AutoTokenizer.from_pretrained(toy_dir)
    template = Template.of(tokenizer, "You answer sums.")
    for question in [
        "What is 5 + 6?",
        "What is 11 + 16?",
        "Ann has 2 apples and gets 1. How many now?",
    ]:
        prompt = template.prompt([{"role": "user", "content": question}])
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=24, do_sample=False)[0][ids.input_ids.shape[1] :]
        with loaded(gguf) as opened:
            text = opened.answer(prompt, tokens=24)[0]
        assert text == tokenizer.decode(out, skip_special_tokens=True)
    assert result.sample_prompt == reference.PROBE
    assert result.sample_answer


@pytest.mark.slow
def test_the_files_and_the_figures(
    spec: ExportSpec, trained: Inputs, toy_dir: Path, tmp_path: Path, recorder: Any
) -> None:
    spec = spec.model_copy(update={"quantization": "Q8_0", "temperature": 0.5})
    result = export.run(spec, trained, tmp_path, recorder)
    gguf = tmp_path / "gguf" / "unsloth.Q8_0.gguf"
    assert result.files == {
        "gguf/unsloth.Q8_0.gguf": "gguf/unsloth.Q8_0.gguf",
        "Modelfile": "Modelfile",
        "serving_reference.json": "serving_reference.json",
    }
    assert {p.name for p in tmp_path.iterdir()} >= {"gguf", "Modelfile", "serving_reference.json"}
    assert not (tmp_path / "tmp").exists()  # intermediates are gone
    assert (result.size, result.sha256) == (gguf.stat().st_size, sha256_of(gguf))
    reader = GGUFReader(gguf)
    assert result.tensors == len(reader.tensors)
    assert sum(result.tensor_types.values()) == result.tensors
    assert result.tensor_types["Q8_0"] > 0
    template = reader.fields["tokenizer.chat_template"].contents()
    assert template.startswith("{#- locollm-toy, job ")
    assert template.endswith(AutoTokenizer.from_pretrained(toy_dir).chat_template)
    assert reader.fields["general.name"].contents() == "locollm-toy"
    assert (tmp_path / "Modelfile").read_text() == (
        "# locollm-toy: toy with the adapter merged in, Q8_0.\n"
        "FROM ./gguf/unsloth.Q8_0.gguf\n"
        "PARAMETER temperature 0.5\n"
        "PARAMETER num_ctx 512\n"
        "PARAMETER num_predict 1024\n"
        'PARAMETER stop "<|im_end|>"\n'
        'SYSTEM """You answer sums."""\n'
    )
    percents = [e.progress.percent for e in recorder.of_type("progress")]
    percents = percents[percents.index(0.0) :]
    assert percents == sorted(percents)
    assert percents[-1] == 100
    assert result.device == "cpu" or torch.cuda.is_available()
    assert result.read_seconds + result.quantize_seconds <= result.write_seconds + 1
    assert result.check_seconds > 0
    assert 0.1 < result.peak_ram_gb < 12
    assert result.perplexity is None  # prepare kept no validation rows


@pytest.mark.slow
def test_the_reference_says_what_a_server_must_be_like(
    spec: ExportSpec, trained: Inputs, training_data: Path, tmp_path: Path, recorder: Any
) -> None:
    """And the base, asked for too, is the same file but for the adapter."""
    spec = spec.model_copy(update={"quantization": "Q8_0", "base": True})
    rows = trained.model_copy(
        update={"files": trained.files | {"prepare/training_data.jsonl": training_data}}
    )
    result = export.run(spec, rows, tmp_path, recorder)
    seen = ServingReference.model_validate_json((tmp_path / REFERENCE).read_text())
    prompts = {prompt.name: prompt for prompt in seen.prompts}
    assert list(prompts) == [
        *("plain", "system", "multi_turn", "unicode", "without_system"),
        *(f"validation-{n}" for n in range(1, 7)),
    ]
    assert prompts["plain"].rendered == prompts["without_system"].rendered
    assert prompts["plain"].messages[0]["role"] == "system"
    assert prompts["without_system"].messages == ({"role": "user", "content": reference.PROBE},)
    answered = [prompt for prompt in seen.prompts if prompt.answer is not None]
    assert [p.name for p in answered] == ["plain", *(f"validation-{n}" for n in range(1, 7))]
    reader, of_base = (
        GGUFReader(tmp_path / "gguf" / f"{name}.Q8_0.gguf") for name in ("unsloth", "base")
    )
    template = reader.fields["tokenizer.chat_template"].contents()
    assert of_base.fields["tokenizer.chat_template"].contents() == template
    assert of_base.fields["general.name"].contents() == "locollm-toy-base"
    assert seen.chat_template_sha256 == hashlib.sha256(template.encode()).hexdigest()
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert seen.vocabulary == len(tokens)
    assert seen.vocabulary_sha256 == hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
    assert seen.tensors == {
        t.name: (t.tensor_type.name, tuple(int(n) for n in t.shape)) for t in reader.tensors
    }
    assert seen.parameter_count == sum(int(t.n_elements) for t in reader.tensors)
    assert (seen.architecture, seen.context_length, seen.thinks) == ("llama", 1024, False)
    assert (result.base_gguf, result.files["gguf/base.Q8_0.gguf"]) == ("gguf/base.Q8_0.gguf",) * 2
    same = [
        a.name
        for a, b in zip(reader.tensors, of_base.tensors, strict=True)
        if a.data.tobytes() == b.data.tobytes()
    ]
    assert "output_norm.weight" in same
    assert "blk.0.attn_q.weight" not in same
    with loaded(tmp_path / result.gguf) as model:
        for prompt in seen.prompts:
            assert len(model.served(prompt.rendered)) == prompt.tokens
        for prompt in answered:
            limit = prompt.num_predict
            assert limit is not None
            again = model.answer(prompt.rendered, tokens=limit, stop=("<|im_end|>",))
            assert again == (prompt.answer, prompt.ended, prompt.answer_tokens)


def test_a_gguf_with_another_tokenizer_is_refused(smollm2_dir: Path, weights: Path) -> None:
    """A token more than the training's: what a swapped tokenizer shows first."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    embedded = served.embedded(tokenizer.chat_template, think=False, title="toy")
    template = Template.of(tokenizer, None)
    said = {"plain": [{"role": "user", "content": "What is locollm?"}]}
    with loaded(weights) as model:
        [prompt] = reference.prompts(said, template, embedded, model, think=False)
        assert prompt.tokens == len(model.served(prompt.rendered))
        tokenizer.add_tokens(["locollm"])
        with pytest.raises(ExportFailed, match="They differ at token"):
            reference.prompts(said, template, embedded, model, think=False)


def test_a_tokenizer_that_composes_accents_is_no_other_tokenizer(
    smollm2_dir: Path, weights: Path, inputs: Inputs, tmp_path: Path
) -> None:
    """As those of Qwen do and llama.cpp never does, so rows with loose accents would make other tokens."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    tokenizer.backend_tokenizer.normalizer = NFC()
    embedded = served.embedded(tokenizer.chat_template, think=False, title="toy")
    template = Template.of(tokenizer, None)
    turns = [
        {"role": "user", "content": "Wie weit ist es nach Mu\u0308nchen?"},
        {"role": "assistant", "content": "Nicht weit."},
    ]
    rows = tmp_path / "training_data.jsonl"
    rows.write_text(json.dumps({"conversations": turns}) + "\n")
    given = inputs.model_copy(update={"files": {"prepare/training_data.jsonl": rows}})
    said = reference.conversations(given, template, longest=1000)
    assert {"unicode", "validation-1"} <= set(said)
    with loaded(weights) as model:
        found = reference.prompts(said, template, embedded, model, think=False)
    assert [p.name for p in found] == list(said)


@pytest.mark.parametrize(
    ("seconds", "num_predict", "num_ctx", "limits"),
    [
        (60.0, 90, 2048, [64, 90, 90, 90, 64, 64]),  # quick: three may end by themselves
        (0.0, 90, 2048, [64, 90, 24, 24, 24, 24]),  # slow: none is left out, one is long
        (60.0, 999, 2048, [64, 256, 256, 256, 64, 64]),
        (60.0, 999, 110, [64, 100, 100, 100, 64, 64]),  # prompt and answer have room
        (60.0, 40, 2048, [64, 40, 40, 40, 64, 64]),
    ],
)
def test_limits_of_the_references_answers(
    monkeypatch: pytest.MonkeyPatch,
    recorder: Any,
    seconds: float,
    num_predict: int,
    num_ctx: int,
    limits: list[int],
) -> None:
    monkeypatch.setattr(reference, "_SECONDS", seconds)
    names = ["plain", "system", *(f"validation-{n}" for n in range(1, 6))]
    asked = [ReferencePrompt(name=n, messages=(), rendered="x", tokens=10) for n in names]

    class Model:
        def answer(self, prompt: str, *, tokens: int, stop: Sequence[str]) -> Answered:
            return Answered(prompt, True, tokens)

    room = {"num_predict": num_predict, "num_ctx": num_ctx}
    found = reference.answered(asked, cast(GgufModel, Model()), (), recorder, **room)
    assert [p.num_predict for p in found if p.name != "system"] == limits
    assert [p.answer_tokens for p in found if p.name != "system"] == limits
    assert found[1].answer is None
    assert max(limits) <= reference.longest_answer(num_predict)


@pytest.mark.slow
def test_a_long_system_prompt_has_room_in_the_check(
    spec: ExportSpec, trained: Inputs, tmp_path: Path, recorder: Any
) -> None:
    system = "You answer sums. " * 160
    base = spec.base_model.model_copy(update={"system": system})
    changed = {"base_model": base, "quantization": "Q8_0"}
    assert export.run(spec.model_copy(update=changed), trained, tmp_path, recorder).sample_answer


def test_the_modelfile_says_what_register_will_send() -> None:
    spec = recipes.resolve(
        REPOSITORY / "adapters",
        recipes.JobRequest(adapter="math", profile="tiny", export={"temperature": 0.25}),
    )
    text = export.modelfile(spec.export, "unsloth.Q4_K_M.gguf", None)
    assert "PARAMETER num_ctx 1024\nPARAMETER num_predict 128\n" in text  # tiny's register
    assert "PARAMETER temperature 0.25\n" in text  # export's own wins


def test_a_stop_during_the_merge_leaves_nothing(
    spec: ExportSpec, trained: Inputs, tmp_path: Path, recorder: Any
) -> None:
    recorder.request_stop()
    with pytest.raises(Stopped):
        export.run(spec, trained, tmp_path, recorder)
    assert [p.name for p in tmp_path.iterdir() if p.name in ("tmp", "gguf", "Modelfile")] == []


def test_an_export_without_training_is_refused(
    spec: ExportSpec, inputs: Inputs, tmp_path: Path, recorder: Any
) -> None:
    with pytest.raises(ExportFailed, match="no trained adapter"):
        export.run(spec, inputs, tmp_path, recorder)


def test_a_template_that_got_lost_is_refused() -> None:
    sound = gguf_head.Contents({"F16": 3}, "template", "llama", 10, 10)
    export._compare(sound, 3, "template")
    with pytest.raises(ExportFailed, match="chat template is not the one used in training"):
        export._compare(sound, 3, "another")
    short = gguf_head.Contents({"F16": 2}, "template", "llama", 10, 9)
    with pytest.raises(ExportFailed, match="2 tensors instead of 3; its vocabulary has 9"):
        export._compare(short, 3, "template")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"not a gguf" * 100)
    with pytest.raises(ExportFailed, match="cannot load"), loaded(path):
        pass


def test_free_space_is_counted_in_bytes(tmp_path: Path) -> None:
    disk.require_free(tmp_path / "not" / "there" / "yet", 1, "a test")
    with pytest.raises(
        DiskFull, match=rf"A test needs {10**18 + disk.RESERVE_BYTES} bytes"
    ) as caught:
        disk.require_free(tmp_path / "not" / "there" / "yet", 10**18, "a test")
    assert caught.value.code == "disk_full"
    assert "LOCO_ADAPTERS_DIR" in (caught.value.hint or "")


def test_cpus_are_those_this_process_may_use() -> None:
    assert usable_cpus() >= 1


@pytest.mark.parametrize("kept", ["jinja", "text", "list"])
def test_what_the_converter_reads_has_no_clock(tmp_path: Path, kept: str) -> None:
    """Also of an adapter that was trained before templates were settled."""
    base, adapter, temporary = (tmp_path / name for name in ("base", "adapter", "tmp"))
    for folder in (base, adapter, temporary):
        folder.mkdir()
    clock = "{{ strftime_now('%d %b %Y') }}“ü”"
    inside = {"text": clock, "list": [{"name": "default", "template": clock}]}.get(kept)
    (base / "tokenizer_config.json").write_text("{}")
    config = {"eos_token": "<|im_end|>"} | ({"chat_template": inside} if inside else {})
    (adapter / "tokenizer_config.json").write_text(json.dumps(config))
    if kept == "jinja":
        (adapter / "chat_template.jinja").write_text(clock)
    folder = folders.make(temporary / "named", base, adapter, lambda text: f"{text}!")
    read = json.loads((folder / "tokenizer_config.json").read_text())
    assert read["eos_token"] == "<|im_end|>"
    found = read.get("chat_template") or (folder / "chat_template.jinja").read_text()
    text = found if isinstance(found, str) else found[0]["template"]
    assert text == '{{ "26 Jul 2024" }}“ü”!'
    assert json.loads((adapter / "tokenizer_config.json").read_text()) == config


@pytest.mark.slow
def test_an_adapter_alone_answers_on_a_base_that_is_written_once(
    spec: ExportSpec, trained: Inputs, toy_dir: Path, tmp_path: Path, recorder: Any
) -> None:
    trained = trained.model_copy(update={"models_dir": tmp_path / "models"})
    first, second = (tmp_path / name for name in ("first", "second"))
    first.mkdir()
    second.mkdir()
    alone = spec.model_copy(update={"format": "adapter"})
    result = export.run(alone, trained, first, recorder)
    assert set(result.files) == {"gguf/adapter.gguf", "Modelfile", "serving_reference.json"}
    assert (result.gguf, result.format, result.base_reused) == (
        "gguf/adapter.gguf",
        "adapter",
        False,
    )
    lora, base = first / result.gguf, result.served_base
    assert base is not None
    assert (result.size, result.sha256) == (lora.stat().st_size, sha256_of(lora))
    kept = trained.models_dir / base.path
    assert (base.size, base.blob) == (kept.stat().st_size, f"sha256:{sha256_of(kept)}")
    assert base.model == f"locollm-base:toy-{base.blob[7:19]}"
    assert f"FROM {base.model}\nADAPTER ./gguf/adapter.gguf\n" in (first / "Modelfile").read_text()

    # what the reference says is what PEFT's model says
    reference = ServingReference.model_validate_json((first / REFERENCE).read_bytes())
    plain = reference.prompts[0]
    folder = trained.files["train/checkpoints/adapter_model.safetensors"].parent
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(toy_dir, dtype=torch.float32), folder
    )
    tokenizer = AutoTokenizer.from_pretrained(toy_dir)
    ids = tokenizer(plain.rendered, add_special_tokens=False, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=24, do_sample=False)[0][ids.input_ids.shape[1] :]
    said = tokenizer.decode(out, skip_special_tokens=True)
    assert (plain.answer or "").startswith(said) or said.startswith(plain.answer or "-")

    # a day later, of another job: the same base, and nothing but the adapter is written
    written = sha256_of(kept), kept.stat().st_ino
    again = export.run(alone, trained.model_copy(update={"job_id": "another"}), second, recorder)
    assert (again.base_reused, again.served_base) == (True, base)
    assert (
        sha256_of(kept),
        kept.stat().st_ino,
    ) == written  # younger now, so that nothing cleans it away
    assert (second / "gguf" / "adapter.gguf").read_bytes() == lora.read_bytes()

    # one that was cut is written anew
    kept.write_bytes(kept.read_bytes()[:-1])
    assert served_base.kept(kept) is None


def test_what_is_written_unasked_follows_from_the_adapters_size(
    spec: ExportSpec, inputs: Inputs, tmp_path: Path, recorder: Any
) -> None:
    weights = tmp_path / "adapter_model.safetensors"
    unasked = spec.model_copy(update={"format": None})
    work = writing.Work(unasked, inputs, tmp_path, tmp_path, tmp_path, recorder)
    for size, wanted in ((47_000_000, "both"), (1_000_000_000, "merged")):
        with weights.open("wb") as file:
            file.truncate(size)
        chosen, reason = work._format()
        assert chosen == wanted
        assert f"{size // 10**6} MB" in str(reason)
    asked = writing.Work(spec, inputs, tmp_path, tmp_path, tmp_path, recorder)
    assert asked._format() == ("merged", None)
