"""The rows' part of a training as a checkpoint, from which trainings on pairs begin.

Variants that differ only in what follows on pairs need not train on the same rows again: what stage
train would have after its rows is written as it writes checkpoints, with an optimizer that begins anew,
as it does there.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from loco_trainer.loop import checkpoints

ADAPTER = "adapter_model.safetensors"


def rows_checkpoint(trained: Path, to: Path) -> Path:
    """A sealed checkpoint after the last step on rows.

    Args:
        trained: folder of a training on the rows alone.
        to: folder of the training that goes on.
    """
    result = json.loads((trained / "result.json").read_text())
    steps = result["total_steps"]
    folder = to / f"checkpoint-{steps}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in (ADAPTER, "adapter_config.json"):
        shutil.copyfile(trained / "checkpoints" / name, folder / name)
    moments = torch.zeros(sum(t.numel() for t in load_file(folder / ADAPTER).values()))
    save_file(
        {"exp_avg": moments, "exp_avg_sq": moments.clone(), "cpu_rng": torch.get_rng_state()},
        folder / "optimizer.safetensors",
    )
    state = {
        "global_step": steps,
        "optimizer_step": 0,
        "log": result["log"],
        # of no device here: it was made without pairs, so it must be made again
        "plan": result["plan"] | {"device": ""},
        "attempts": [],
        "validation": {"log": [], "base": [], "lowest": []},
        "reference": False,
        "loss_scale": {},
    }
    (folder / "trainer_state.json").write_text(json.dumps(state) + "\n")
    checkpoints.seal(folder)
    return folder
