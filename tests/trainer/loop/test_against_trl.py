"""Our training loop against TRL's SFTTrainer and DPOTrainer: the same seed, rows and rates give the
same losses.

TRL is what a person training by hand uses; here it gets our order of rows and learning rate, pads
its batches and accumulates over them, all in float32.
"""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from loco.contracts.specs import Inputs, PreferenceSpec, TrainSpec
from loco_trainer import train
from loco_trainer.bases import find
from loco_trainer.data import pairs, rows
from loco_trainer.data.batches import epoch_order
from loco_trainer.data.pairs import Pair
from loco_trainer.engines import peft
from loco_trainer.loop.schedule import rate_factor

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's own


def in_our_order(
    trainer: type[Any], spec: TrainSpec, lengths: list[int], *, step_rows: int, steps: int
) -> type[Any]:
    """A trainer of TRL with our order of rows and our learning rate."""
    from torch.optim.lr_scheduler import LambdaLR
    from torch.utils.data import Sampler

    class Order(Sampler):
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __len__(self) -> int:
            return len(lengths)

        def __iter__(self) -> Any:
            return iter(epoch_order(lengths, step_rows=step_rows, seed=spec.seed, epoch=self.epoch))

    class Ordered(trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return Order()

        def create_scheduler(self, *_: Any, optimizer: Any = None, **__: Any) -> Any:
            rate = functools.partial(rate_factor, spec, steps)
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, rate)
            return self.lr_scheduler

    return Ordered


def trl_losses(spec: TrainSpec, data: list[rows.Row], base: Path, folder: Path) -> list[Any]:
    """Loss and gradient norm of each step of SFTTrainer."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    steps_per_epoch = -(-len(data) // spec.step_rows)
    steps = int(spec.epochs * steps_per_epoch)
    lengths = [len(row.input_ids) for row in data]

    trainer_class = in_our_order(SFTTrainer, spec, lengths, step_rows=spec.step_rows, steps=steps)

    def pad(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)

        def full(name: str, filler: int) -> torch.Tensor:
            return torch.tensor([r[name] + [filler] * (longest - len(r[name])) for r in batch])

        mask = [[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in batch]
        return {
            "input_ids": full("input_ids", 0),
            "labels": full("labels", rows.IGNORED),
            "attention_mask": torch.tensor(mask),
        }

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(spec.seed)
    lora = spec.lora
    model = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM", r=lora.r, lora_alpha=lora.alpha, target_modules="all-linear"
        ),
    )
    trainer = trainer_class(
        model=model,
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=spec.batch_size,
            gradient_accumulation_steps=spec.gradient_accumulation,
            learning_rate=spec.learning_rate,
            weight_decay=spec.weight_decay,
            max_grad_norm=spec.max_grad_norm,
            optim="adamw_torch",
            max_length=None,
            packing=False,
            padding_free=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(
            [{"input_ids": r.input_ids, "labels": r.labels} for r in data]
        ),
        processing_class=AutoTokenizer.from_pretrained(base),
        data_collator=pad,
    )
    trainer.train()
    return [(e["loss"], e["grad_norm"]) for e in trainer.state.log_history if "loss" in e]


def test_losses_and_gradients_are_trls(
    toy_spec: TrainSpec,
    toy_dir: Path,
    inputs: Inputs,
    tmp_path: Path,
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peft, "_compute_dtype", lambda: torch.float32)
    lora = toy_spec.lora.model_copy(update={"dropout": 0.0})
    spec = toy_spec.model_copy(
        update={"lora": lora, "batch_size": 2, "gradient_accumulation": 3, "epochs": 2}
    )
    ours = train.run(spec, inputs, tmp_path / "ours", recorder)
    base = find.resolve(spec.base_model, "config", tmp_path, recorder)
    template = train._template(base, spec.base_model.system)
    data = rows.read(
        inputs.files["prepare/training_data.jsonl"],
        template,
        max_length=spec.max_length,
    )
    theirs = trl_losses(spec, data.rows, toy_dir, tmp_path / "theirs")
    assert len(theirs) == len(ours.log) == 8
    assert [s.loss for s in ours.log] == pytest.approx([loss for loss, _ in theirs], rel=1e-4)
    assert [s.grad_norm for s in ours.log] == pytest.approx([n for _, n in theirs], rel=1e-3)


def dpo_losses(
    spec: TrainSpec, data: list[Pair], base: Path, adapter: Path, folder: Path
) -> list[dict[str, float]]:
    """What DPOTrainer logs of each step, going on with an adapter, which is its reference."""
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    given = spec.preference
    assert given is not None
    lengths = [pair.longest for pair in data]
    steps = int(given.epochs * -(-len(data) // given.batch_size))

    class Tokenized(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    rows_a_step = given.batch_size
    trainer_class = in_our_order(Tokenized, spec, lengths, step_rows=rows_a_step, steps=steps)

    def columns(pair: Pair) -> dict[str, list[int]]:
        begins = next(n for n, label in enumerate(pair.chosen.labels) if label != rows.IGNORED)
        return {
            "prompt_ids": pair.chosen.input_ids[:begins],
            "chosen_ids": pair.chosen.input_ids[begins:],
            "rejected_ids": pair.rejected.input_ids[begins:],
        }

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    trainer = trainer_class(
        model=model,
        args=DPOConfig(
            output_dir=str(folder),
            max_steps=steps,
            # one pair a pass: its loss of the right answers is a mean over the tokens of a pass
            per_device_train_batch_size=1,
            gradient_accumulation_steps=given.batch_size,
            learning_rate=given.learning_rate,
            beta=given.beta,
            loss_type=["sigmoid", "sft"],
            loss_weights=[1.0, given.nll],
            weight_decay=spec.weight_decay,
            max_grad_norm=spec.max_grad_norm,
            optim="adamw_torch",
            max_length=None,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([columns(pair) for pair in data]),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_losses_of_pairs_and_gradients_are_trls(
    toy_spec: TrainSpec,
    toy_dir: Path,
    inputs: Inputs,
    preference_data: Path,
    tmp_path: Path,
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peft, "_compute_dtype", lambda: torch.float32)
    lora = toy_spec.lora.model_copy(update={"dropout": 0.0})
    given = PreferenceSpec(learning_rate=2e-3, beta=0.3, nll=0.2, epochs=2, batch_size=4)
    alone = toy_spec.model_copy(update={"lora": lora, "epochs": 1})
    files = {**inputs.files, "prepare/preference_data.jsonl": preference_data}
    inputs = inputs.model_copy(update={"files": files})
    spec = alone.model_copy(update={"preference": given})
    train.run(alone, inputs, tmp_path / "rows", recorder)
    ours = train.run(spec, inputs, tmp_path / "ours", recorder).log[6:]

    base = find.resolve(spec.base_model, "config", tmp_path, recorder)
    template = train._template(base, spec.base_model.system)
    data = pairs.read(preference_data, template, max_length=spec.max_length).pairs
    adapter = tmp_path / "rows" / "checkpoints"
    theirs = dpo_losses(spec, data, toy_dir, adapter, tmp_path / "theirs")
    assert len(theirs) == len(ours) == 6
    assert [s.loss for s in ours] == pytest.approx([e["loss"] for e in theirs], abs=1e-5)
    assert [s.grad_norm for s in ours] == pytest.approx([e["grad_norm"] for e in theirs], rel=1e-3)
    margins = [e["rewards/margins"] / given.beta for e in theirs]
    assert [s.margin for s in ours] == pytest.approx(margins, rel=1e-3, abs=1e-3)
    assert [s.accuracy for s in ours][1:] == [e["rewards/accuracies"] for e in theirs][1:]
