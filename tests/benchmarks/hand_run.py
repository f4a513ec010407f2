"""The adapter built by hand: the script a user of Unsloth writes, with the seconds each part takes.

    .venv-train/bin/python tests/benchmarks/hand_run.py --base DIR --rows training_data.jsonl --out DIR

Loads the base in 4 bits, trains a LoRA adapter with SFTTrainer in batches of 2 x 4, merges to 16 bits,
converts to GGUF and quantizes to Q4_K_M. It is what `tests/benchmarks/gpu.py` compares the service
with, so it does what Unsloth's and llama.cpp's documentation say and nothing slower. Needs an NVIDIA
GPU. Writes OUT/timings.json and prints it as the last line.
"""

import time

# Unsloth asks to be imported before trl, transformers and peft.
from unsloth import FastLanguageModel  # isort: skip

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import llama_cpp
import psutil
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

MAX_SEQ_LENGTH = 1024
SEED = 0


def main() -> None:
    """Trains, merges, converts, quantizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="folder of the 16-bit base model")
    parser.add_argument("--rows", type=Path, required=True, help="JSONL of chat rows")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--epochs", type=float, default=3)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    timings: dict[str, Any] = {}
    # from the program's start, so that the imports above count as they do for a user
    clock = Laps(psutil.Process().create_time())

    timings["import_seconds"] = clock.lap()
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(arguments.base), max_seq_length=MAX_SEQ_LENGTH, load_in_4bit=True
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=32,
        lora_dropout=0,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        bias="none",
        use_gradient_checkpointing="unsloth",
        random_state=SEED,
    )
    timings["load_seconds"] = clock.lap()

    rows = [json.loads(line)["conversations"] for line in arguments.rows.read_text().splitlines()]
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
    watch = Watch()
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"text": texts}),
        args=SFTConfig(
            output_dir=str(out / "outputs"),
            dataset_text_field="text",
            max_length=MAX_SEQ_LENGTH,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            num_train_epochs=arguments.epochs,
            learning_rate=2e-4,
            warmup_steps=5,
            logging_steps=1,
            optim="adamw_8bit",
            weight_decay=0.01,
            lr_scheduler_type="linear",
            seed=SEED,
            report_to="none",
        ),
        callbacks=[watch],
    )
    began = time.time()
    trainer.train()
    ended = time.time()
    steps = [after - before for before, after in pairwise([began, *watch.ends])]
    timings["first_step_at_seconds"] = round(watch.ends[0] - clock.started, 3)
    timings["train_seconds"] = round(ended - began, 3)
    timings["steps"] = len(steps)
    timings["step_seconds"] = round(statistics.median(steps), 4)
    timings["losses"] = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    timings["peak_reserved_gb"] = round(torch.cuda.max_memory_reserved() / 1e9, 3)
    model.save_pretrained(str(out / "lora"))
    tokenizer.save_pretrained(str(out / "lora"))
    clock.lap()

    merged = out / "merged"
    model.save_pretrained_merged(str(merged), tokenizer, save_method="merged_16bit")
    timings["merge_seconds"] = clock.lap()

    sixteen = out / "model.bf16.gguf"
    converter = str(Path(sys.prefix) / "converter")
    subprocess.run(
        [
            *(sys.executable, "-m", "convert_hf_to_gguf", "--outtype", "bf16"),
            *("--outfile", str(sixteen), str(merged)),
        ],
        env={**os.environ, "PYTHONPATH": converter},
        check=True,
    )
    timings["convert_seconds"] = clock.lap()

    final = out / "unsloth.Q4_K_M.gguf"
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    parameters.nthread = os.cpu_count()
    code = llama_cpp.llama_model_quantize(
        os.fsencode(sixteen), os.fsencode(final), ctypes.byref(parameters)
    )
    if code != 0:
        raise SystemExit(f"llama.cpp could not quantize (code {code}).")
    timings["quantize_seconds"] = clock.lap()
    timings["gguf_bytes"] = final.stat().st_size
    timings["whole_seconds"] = round(time.time() - clock.started, 3)
    (out / "timings.json").write_text(json.dumps(timings, indent=1) + "\n")
    print(json.dumps(timings))


class Laps:
    """Seconds of one part after the other."""

    def __init__(self, started: float) -> None:
        self.started = self._last = started

    def lap(self) -> float:
        """Seconds since the last lap."""
        last, self._last = self._last, time.time()
        return round(self._last - last, 3)


class Watch(TrainerCallback):
    """When each optimizer step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Waits for the GPU, so that the time is the step's."""
        torch.cuda.synchronize()
        self.ends.append(time.time())


if __name__ == "__main__":
    main()
