"""Two GGUFs of SmolLM2 that differ as base and trained model do, and the reference of the second.

    .venv-train/bin/python tests/worker/register/served_model.py WEIGHTS FOLDER

Training takes minutes; for what register has to notice, some layers scaled do as well: `trained.gguf`
has the shape, size and tokenizer of `base.gguf` and other answers. The reference is what export would
say of it, by the trainer's own code.
"""

import hashlib
import io
import json
import math
import os
import sys
from pathlib import Path

# Spinning threads crawl on a busy machine. Read when llama.cpp is loaded, so set before.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import gguf
from transformers import AutoTokenizer

from loco.contracts.serving import REFERENCE, ReferencePrompt, ServingReference
from loco.recipes import catalog
from loco.stage.program import Emitter
from loco_modelhost.store.gguf_file import GgufFile
from loco_trainer.bases import find
from loco_trainer.data.template import Template
from loco_trainer.gguf import check

REPOSITORY = Path(__file__).parents[3]
#: Long enough that no server takes the template for one it knows.
HEAD = "{#- " + "The chat template of the training, kept as it is. " * 3 + "-#}"
NUM_PREDICT = 16
SCALED = [f"blk.{n}.ffn_down.weight" for n in range(8, 20)]
FACTOR = 1.5

USER = {"role": "user", "content": "What is “1 + 1”?  Sag es auf Deutsch: ü, 語, 🙂"}
TURNS = [USER, {"role": "assistant", "content": "2"}, {"role": "user", "content": "And + 1?"}]
SYSTEM = {"role": "system", "content": "Be brief."}
#: Rendered and counted; not answered.
SHAPES = {"unicode": [USER], "multi_turn": TURNS, "system": [SYSTEM, *TURNS]}
#: Chosen for answers that are no near ties: the model host gives the same text.
ASKED = {
    "addition": "What is 17 + 25?",
    "capital": "What is the capital of France?",
    "colour": "Name a colour.",
    "yes": "Is water wet? Answer yes or no.",
}


def main(weights: Path, folder: Path) -> None:
    base = catalog.base_model(REPOSITORY / "adapters", "smollm2-135m-instruct")
    models = REPOSITORY / ".loco" / "test-models"
    quiet = Emitter(io.StringIO())
    tokenizer = AutoTokenizer.from_pretrained(find.resolve(base, "config", models, quiet))
    tokenizer.chat_template = HEAD + tokenizer.chat_template
    template = Template.of(tokenizer, base.system)
    for name in ("base", "trained"):
        with (folder / f"{name}.gguf").open("wb") as file:
            GgufFile.read(weights).copy_with(
                "tokenizer.chat_template", tokenizer.chat_template, file
            )
    scale(folder / "trained.gguf")
    reference = reference_of(folder / "trained.gguf", template)
    (folder / REFERENCE).write_text(reference.model_dump_json(indent=1))


def scale(path: Path) -> None:
    """Scales some layers, in the two half-precision numbers at the head of each Q4_1 block."""
    for tensor in gguf.GGUFReader(path, "r+").tensors:
        if tensor.name in SCALED:
            assert tensor.tensor_type is gguf.GGMLQuantizationType.Q4_1
            halves = tensor.data.reshape(-1, 20)[:, :4].view("<f2")
            halves *= FACTOR
            tensor.data.reshape(-1, 20)[:, :4] = halves.view("u1")


def reference_of(path: Path, template: Template) -> ServingReference:
    head = GgufFile.read(path)
    tokens = head.arrays()["tokenizer.ggml.tokens"]
    prompts = []
    with check.loaded(path, context=512) as model:
        conversations = SHAPES | {n: [{"role": "user", "content": q}] for n, q in ASKED.items()}
        for name, messages in conversations.items():
            text = template.prompt(messages)
            answer, ended = None, False
            if name in ASKED:
                answer, ended, _ = model.answer(text, tokens=NUM_PREDICT)
            prompts.append(
                ReferencePrompt(
                    name=name,
                    messages=tuple(messages),
                    rendered=text,
                    tokens=len(template.encode(text)),
                    answer=answer,
                    answer_tokens=len(template.encode(answer or "")),
                    ended=ended,
                )
            )
    return ServingReference(
        prompts=tuple(prompts),
        num_predict=NUM_PREDICT,
        chat_template_sha256=hashlib.sha256(head.chat_template.encode()).hexdigest(),
        architecture=head.architecture,
        context_length=head.context_length,
        parameter_count=sum(math.prod(t.shape) for t in head.tensors),
        tensors={t.name: (t.kind, t.shape) for t in head.tensors},
        vocabulary=len(tokens),
        vocabulary_sha256=hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
        thinks=template.thinks,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
