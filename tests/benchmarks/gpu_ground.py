"""What a GPU measurement stands on: a model of Qwen3-4B's shape, the recipe's rows, the specs.

The weights are random: speed and memory do not depend on their values, and nothing has to be
downloaded but a tokenizer and the rows.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from loco.contracts.plans import Shape
from loco.contracts.sources import HuggingFaceSource, JsonlSource
from loco.contracts.specs import BaseModelSpec, ExportSpec, Inputs, PrepareSpec, StageRun, TrainSpec
from loco.contracts.stages import Stage

ROOT = Path(__file__).resolve().parents[2]
#: Qwen3-4B's config.json, and a toy of the same architecture for trying this out without a GPU.
SHAPES: dict[str, dict[str, int]] = {
    "qwen3-4b": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
}
#: Rows of Qwen3's embedding; its tokenizer fills 151,669 of them.
_VOCABULARY = 151_936

#: Run in a process of its own, which gives the GPU's memory back.
_MAKE = """
import json, sys, torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
folder, tokenizer, shape, vocabulary = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
words = AutoTokenizer.from_pretrained(tokenizer)
torch.manual_seed(0)
torch.set_default_dtype(torch.bfloat16)
torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
config = Qwen3Config(
    **shape, vocab_size=vocabulary, tie_word_embeddings=True, max_position_embeddings=40960,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6}, rms_norm_eps=1e-6,
    bos_token_id=None, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
)
model = Qwen3ForCausalLM(config)
# Random weights may answer with blanks alone, which export takes for a broken model: words without
# ink get a row of zeros, which the largest of 150,000 random scores always beats.
blank = [i for i, word in enumerate(words.batch_decode([[i] for i in range(len(words))])) if not word.strip()]
with torch.no_grad():
    model.model.embed_tokens.weight[sorted({*blank, *words.all_special_ids})] = 0
model.save_pretrained(folder, max_shard_size="2GB")
words.save_pretrained(folder)
"""


@dataclass(frozen=True)
class Ground:
    """Where a measurement works and from what."""

    #: Holds the model, rows and the runs' folders.
    work: Path
    #: Folder or hub id of the tokenizer.
    tokenizer: str
    #: JSONL of GSM8K rows (`question`, `answer`); None: from the hub.
    gsm8k: Path | None
    shape: str = "qwen3-4b"
    examples: int = 200
    #: Environment of every program started.
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def base(self) -> Path:
        """Folder of the 16-bit base model."""
        return self.work / f"base-{self.shape}"

    @cached_property
    def parameters(self) -> int:
        """Parameters of the base model."""
        return Shape.of(json.loads((self.base / "config.json").read_text())).parameters

    @cached_property
    def weight_bytes(self) -> int:
        """Size of the base model's safetensors files, in bytes."""
        return sum(file.stat().st_size for file in self.base.glob("*.safetensors"))

    @property
    def base_model(self) -> BaseModelSpec:
        """The base as a recipe names it."""
        return BaseModelSpec(
            name=self.shape,
            kind="folder",
            train=str(self.base),
            merge=str(self.base),
            ollama=self.shape,
            stop=("<|im_end|>",),
            parameters_billion=round(max(self.parameters / 1e9, 0.001), 3),
        )

    def make(self) -> None:
        """Writes the base model, unless it lies there already.

        Raises:
            SystemExit: the tokenizer cannot be loaded; says what to give.
        """
        if (self.base / "config.json").is_file():
            return
        part = self.work / f"{self.base.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        command = [sys.executable, "-c", _MAKE, str(part), self.tokenizer]
        command += [json.dumps(SHAPES[self.shape]), str(_VOCABULARY)]
        made = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if made.returncode != 0:
            said = made.stderr.strip().splitlines()[-1:]
            raise SystemExit(
                f"The base model could not be made with tokenizer {self.tokenizer!r}: {said}. "
                "Without a hub, name a folder that holds Qwen3's tokenizer: --tokenizer DIR."
            )
        part.rename(self.base)

    def prepare_spec(self) -> PrepareSpec:
        """The recipe's rows."""
        source = (
            HuggingFaceSource(kind="huggingface")
            if self.gsm8k is None
            else JsonlSource(kind="jsonl", path=str(self.gsm8k.resolve()))
        )
        return PrepareSpec(source=source, examples=self.examples)

    def train_spec(self, **changed: Any) -> TrainSpec:
        """The recipe's hyperparameters, which are the spec's defaults, and what differs."""
        return TrainSpec.model_validate({"base_model": self.base_model} | changed)

    def export_spec(self) -> ExportSpec:
        """The recipe's export."""
        return ExportSpec(base_model=self.base_model, model_name="locollm-bench")

    def document(
        self,
        stage: Stage,
        spec: PrepareSpec | TrainSpec | ExportSpec,
        *,
        models: Path,
        files: dict[str, Path],
        results: dict[Stage, dict[str, Any]],
    ) -> str:
        """The spec.json of an attempt."""
        inputs = Inputs(
            job_id="bench",
            adapter="math",
            adapter_dir=ROOT / "adapters" / "math",
            models_dir=models,
            locks_dir=self.work / "locks",
            dataset_dirs=(self.gsm8k.resolve().parent,) if self.gsm8k else (),
            ollama_host="http://127.0.0.1:9",
            files=files,
            results=results,
        )
        return StageRun(stage=stage, spec=spec.model_dump(), inputs=inputs).model_dump_json()

    def filled_rows(self, tokens: int, rows: int, training_data: Path) -> Path:
        """Chat rows that are all longer than `tokens`, so that max_length cuts them to it.

        Args:
            tokens: length the rows will be cut to.
            rows: how many.
            training_data: real rows, whose answers are laid end to end until a row is long enough.

        Returns:
            A JSONL file as prepare writes it.
        """
        target = self.work / f"filled-{tokens}-{rows}.jsonl"
        real = [
            json.loads(line)["conversations"] for line in training_data.read_text().splitlines()
        ]
        lines = []
        for first in range(rows):
            answer, at = "", first
            while len(answer) < 8 * tokens:  # a token is under 8 characters of such text
                turns = real[at % len(real)]
                answer += turns[0]["content"] + "\n" + turns[-1]["content"] + "\n"
                at += 1
            question = {"role": "user", "content": real[first % len(real)][0]["content"][:200]}
            row = {"conversations": [question, {"role": "assistant", "content": answer}]}
            lines.append(json.dumps(row) + "\n")
        target.write_text("".join(lines))
        return target
