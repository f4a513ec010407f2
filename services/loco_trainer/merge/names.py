"""What one weight is called in memory and on disk.

transformers loads some architectures under other names than their files have: Gemma 3's
`language_model.model.layers.0…` is `model.language_model.layers.0…` in memory. An adapter is saved
under the names in memory, and merged into the files.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from loco.contracts.errors import TrainingFailed
from loco_trainer.merge.stored import index

_INDEX = "model.safetensors.index.json"


def hollow(base: Path) -> Any:
    """The model that training builds from a base's config, without weights: no bytes are read.

    Raises:
        TrainingFailed: transformers has no causal language model for that config.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise TrainingFailed(
            f"transformers cannot build the base model: {error}",
            param="base_model",
            hint="Choose a causal language model whose architecture is part of transformers.",
        ) from error


def stored_names(base: Path) -> Iterable[str] | None:
    """Names of a base's tensors on disk; None where only its config has been fetched.

    Raises:
        ExportFailed: a header is damaged.
    """
    if (listed := base / _INDEX).is_file():
        return list(json.loads(listed.read_bytes())["weight_map"])
    return index(base) if any(base.glob("*.safetensors")) else None


def on_disk(model: Any, stored: Iterable[str]) -> dict[str, str]:
    """Names on disk by the names in memory, for all weights that are stored as they are.

    Those that transformers puts together from several tensors, or takes apart, are left out: what is
    added to one of them has no place in the files.

    Args:
        model: as `hollow` builds it.
        stored: names of the tensors on disk.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    changes = get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    weights = model.state_dict()
    found = {}
    for name in stored:
        here, converted = rename_source_key(
            name, renamings, converters, model.base_model_prefix, weights
        )
        if converted is None and here in weights:
            found[here] = name
    return found
