"""Whether a base is on this machine: the same folders as the trainer's, and only when whole."""

import json
import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from loco.contracts.errors import Busy, DataError
from loco.contracts.plans import Shape
from loco.contracts.requests import JobRequest
from loco.contracts.specs import BaseModelSpec, Inputs, JobSpec
from loco.planning.deadline import until
from loco.planning.facts import is_here, lengths_of
from loco.planning.history import History
from loco.planning.memory import weight_bytes
from loco.planning.row_lengths import lengths_of_file
from loco.recipes.base_files import (
    missing_weights,
    tensor_entries,
    user_hub_cache,
    with_stored_size,
)
from loco.recipes.resolve import resolve
from loco.settings import Settings
from loco_worker.sources.sources import open_source

ADAPTERS = Path(__file__).parents[2] / "adapters"
VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
BASE = BaseModelSpec(
    name="toy",
    kind="hub",
    train="team/toy-4bit",
    merge="team/toy",
    ollama="toy",
    parameters_billion=0.1,
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without a cache."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def keep(cache: Path, *files: str, main: str = "c1") -> Path:
    """Puts a snapshot of team/toy into a cache."""
    model = cache / "models--team--toy"
    folder = model / "snapshots" / "c1"
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_bytes(b"x")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(main)
    return folder


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"XDG_CACHE_HOME": "{}/x"},
        {"HF_HOME": "{}/hf"},
        {"HF_HOME": "~/hf", "XDG_CACHE_HOME": "{}/x"},
        {"HF_HOME": "$HOME/hf", "HUGGINGFACE_HUB_CACHE": "{}/older"},
        {"HF_HOME": "{}/hf", "HF_HUB_CACHE": "{}/hub", "HUGGINGFACE_HUB_CACHE": "{}/older"},
    ],
)
def test_the_users_cache_is_where_the_hubs_library_keeps_it(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    said = subprocess.run(
        [sys.executable, "-c", "from huggingface_hub import constants as c; print(c.HF_HUB_CACHE)"],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert str(user_hub_cache()) == said
    assert not is_here(BASE, BASE.merge, tmp_path / "models")
    keep(Path(said), "model.safetensors")
    assert is_here(BASE, BASE.merge, tmp_path / "models")
    assert not is_here(BASE, BASE.train, tmp_path / "models")


def test_the_labs_own_cache_counts_too(tmp_path: Path) -> None:
    keep(tmp_path / "models" / "hub", "model.safetensors")
    assert is_here(BASE, BASE.merge, tmp_path / "models")


@pytest.mark.parametrize(("files", "main"), [(["config.json"], "c1"), (["x.safetensors"], "c2")])
def test_a_snapshot_that_the_trainer_would_not_take_is_not_here(
    files: list[str], main: str, tmp_path: Path
) -> None:
    keep(tmp_path / "models" / "hub", *files, main=main)
    assert not is_here(BASE, BASE.merge, tmp_path / "models")


def test_a_part_of_the_weights_is_not_here(tmp_path: Path) -> None:
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    folder = keep(tmp_path / "models" / "hub", shards[0])
    index = folder / "model.safetensors.index.json"
    assert missing_weights(folder) == [index.name]
    index.write_text(json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}))
    assert missing_weights(folder) == [shards[1]]
    assert not is_here(BASE, BASE.merge, tmp_path / "models")
    (folder / shards[1]).write_bytes(b"x")
    assert is_here(BASE, BASE.merge, tmp_path / "models")
    index.write_text("{")
    assert missing_weights(folder) == [index.name]


SHAPE = Shape.of(
    {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 300,
        "tie_word_embeddings": True,
    }
)


def store(file: Path, **sizes: int) -> None:
    """A safetensors file of tensors of so many bytes."""
    ends = [sum(list(sizes.values())[: n + 1]) for n in range(len(sizes))]
    entries = {
        name: {"dtype": "U8", "shape": [size], "data_offsets": [end - size, end]}
        for (name, size), end in zip(sizes.items(), ends, strict=True)
    }
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(sum(sizes.values())))


FOUR_BIT = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """The folder that the base trains from, with the config of 4-bit weights and none of them."""
    keep(tmp_path / "hub", "config.json")
    model = tmp_path / "hub" / "models--team--toy"
    folder = model.rename(model.with_name("models--team--toy-4bit")) / "snapshots" / "c1"
    (folder / "config.json").write_text(json.dumps(FOUR_BIT))
    return folder


def test_the_size_of_4_bit_weights_is_read_from_their_headers(stored: Path, tmp_path: Path) -> None:
    assert with_stored_size(SHAPE, BASE, tmp_path) == SHAPE
    store(stored / "a.safetensors", q=70_000, absmax=1000)
    store(stored / "b.safetensors", left_in_16_bits=60_000)
    names = {"q": "a.safetensors", "left_in_16_bits": "b.safetensors"}
    (stored / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    found = with_stored_size(SHAPE, BASE, tmp_path)
    assert weight_bytes(found, "4bit") == 131_000 != round(weight_bytes(SHAPE, "4bit"))
    assert weight_bytes(found, "bf16") == weight_bytes(SHAPE, "bf16")
    (stored / "b.safetensors").write_bytes(b"x")
    assert with_stored_size(SHAPE, BASE, tmp_path) == SHAPE


def test_weights_that_are_there_twice_count_once(stored: Path, tmp_path: Path) -> None:
    store(stored / "model.safetensors", q=3000)
    store(stored / "consolidated.safetensors", q=3000)
    assert with_stored_size(SHAPE, BASE, tmp_path).quantized_bytes == 3000


@pytest.mark.parametrize(
    "config",
    [
        {},  # 16 bits, which training quantizes itself
        {"quantization_config": {"quant_method": "fp8"}},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"quantization_config": None},
        None,
    ],
)
def test_only_4_bit_weights_tell_their_size(stored: Path, tmp_path: Path, config: object) -> None:
    store(stored / "model.safetensors", q=3000)
    (stored / "config.json").write_text(json.dumps(config))
    assert with_stored_size(SHAPE, BASE, tmp_path) == SHAPE


@pytest.mark.parametrize(
    "header",
    [
        None,
        [],
        {"a": 5},
        {"a": {"dtype": "F16", "shape": None, "data_offsets": [0, 1]}},
        {"a": {"dtype": "F16", "shape": [1], "data_offsets": 3}},
        {"a": {"dtype": "F16", "shape": [1], "data_offsets": [4, 2]}},
        {"a": {"shape": [1], "data_offsets": [0, 2]}},
    ],
)
def test_a_damaged_header_is_one_whatever_it_holds(
    stored: Path, tmp_path: Path, header: object
) -> None:
    text = json.dumps(header).encode()
    file = stored / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match="the header"):
        list(tensor_entries(file))
    assert with_stored_size(SHAPE, BASE, tmp_path) == SHAPE


def test_pairs_are_taken_to_be_as_long_as_rows(tmp_path: Path) -> None:
    questions = {"kind": "arithmetic"}
    source = {"kind": "self", "questions": questions, "pairs": 50}
    request = {"adapter": "math", "prepare": {"source": source}, "train": {"preference": {}}}
    spec = resolve(ADAPTERS, JobRequest.model_validate(request))
    settings = Settings(adapters_dir=tmp_path)
    lengths, _ = lengths_of(spec, History([]), settings)
    assert lengths.pairs is not None
    assert (lengths.rows, lengths.pairs.rows) == (200, 100)
    assert lengths.pairs.mean == lengths.mean
    without = spec.train.model_copy(update={"preference": None})
    lengths, _ = lengths_of(spec.model_copy(update={"train": without}), History([]), settings)
    assert lengths.pairs is None


def given(source: dict[str, object], **prepare: object) -> JobSpec:
    request = {"adapter": "math", "prepare": {"source": source, **prepare}}
    return resolve(ADAPTERS, JobRequest.model_validate(request))


def test_rows_of_a_file_are_read_not_assumed(tmp_path: Path) -> None:
    adapter = tmp_path / "math"
    adapter.mkdir()
    texts = [("q" * 64, "a" * 32 + "<<1+1=2>>")] * 30
    chats = [
        {"messages": [{"role": "user", "content": q}, {"from": "gpt", "value": a}]}
        for q, a in texts
    ]
    asked = [{"question": q, "answer": a} for q, a in texts]
    lines = [json.dumps(row) for row in (*chats, *asked)]
    lines[10:10] = ["{half", "[" * 100_000, "5", '{"question": 5, "answer": null}', ""]
    (adapter / "mine.jsonl").write_text("\n".join(lines))
    (adapter / "training_data.jsonl").write_text(
        json.dumps({"messages": [{"content": "x" * 9000}]})
    )
    settings = Settings(adapters_dir=tmp_path)
    spec = given({"kind": "jsonl", "path": "mine.jsonl"}, examples=200)
    lengths, known = lengths_of(spec, History([]), settings)
    assert known == "the characters of mine.jsonl"
    assert (lengths.rows, lengths.mean, lengths.longest) == (60, 46, 46)
    assert lengths.answer_tokens == 60 * 11
    spec = given({"kind": "jsonl", "path": "mine.jsonl"}, examples=20)
    assert lengths_of(spec, History([]), settings)[0].rows == 20
    with pytest.raises(DataError, match=r"No data file 'none\.jsonl'"):
        lengths_of(given({"kind": "jsonl", "path": "none.jsonl"}), History([]), settings)


def test_a_large_file_is_read_in_part_and_in_time(tmp_path: Path) -> None:
    row = json.dumps({"question": "q" * 640, "answer": "a" * 320}) + "\n"
    file = tmp_path / "large.jsonl"
    file.write_text(row * 20_000)
    lengths = lengths_of_file(file)
    assert lengths is not None
    assert (lengths.rows, lengths.mean) == (20_000, 316)
    with until(time.monotonic() - 1), pytest.raises(Busy):
        lengths_of_file(file)
    file.write_bytes(b"x" * (20 << 20))
    assert lengths_of_file(file) is None


@pytest.mark.parametrize("source", [{"kind": "arithmetic"}, {"kind": "reasoning-gym"}])
def test_what_a_generator_makes_is_as_long_as_the_plan_says(
    source: dict[str, object], tmp_path: Path
) -> None:
    spec = given(source, examples=300)
    told, known = lengths_of(spec, History([]), Settings(adapters_dir=tmp_path))
    assert known == "what this generator produces"
    inputs = Inputs(
        job_id="x",
        adapter="math",
        adapter_dir=tmp_path,
        models_dir=tmp_path,
        locks_dir=tmp_path,
        ollama_host="",
    )
    made = tmp_path / "made.jsonl"
    with made.open("w") as file:
        for record in islice(open_source(spec.prepare.source, inputs, 7).records, 300):
            file.write(json.dumps({"conversations": record().conversations}) + "\n")
    found = lengths_of_file(made)
    assert found is not None
    assert found.rows == told.rows
    for name in ("tokens", "answer_tokens", "p50", "p95", "longest"):
        assert getattr(told, name) == pytest.approx(getattr(found, name), rel=0.1), name
