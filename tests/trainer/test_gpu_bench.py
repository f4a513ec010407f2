"""The GPU benchmark, as far as it goes without a GPU: it refuses, and its rows are as long as said."""

import json
import os
import subprocess
import sys
from pathlib import Path

from loco_trainer.data import rows
from loco_trainer.data.template import Template

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "tests" / "benchmarks"
sys.path.append(str(BENCHMARKS))

from gpu_ground import Ground  # noqa: E402


def test_without_a_gpu_it_says_so_and_ends_with_2(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py"), "--out", str(tmp_path / "figures")],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert "no NVIDIA GPU" in ended.stderr
    assert "make setup-gpu" in ended.stderr
    assert not (tmp_path / "figures").exists()


def test_filled_rows_are_cut_to_exactly_so_many_tokens(
    tmp_path: Path, training_data: Path, smollm2_dir: Path
) -> None:
    from transformers import AutoTokenizer

    ground = Ground(work=tmp_path, tokenizer=str(smollm2_dir), gsm8k=None)
    filled = ground.filled_rows(512, 30, training_data)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    read = rows.read(filled, Template.of(tokenizer, None), max_length=512)
    assert [len(row.input_ids) for row in read.rows] == [512] * 30
    assert read.cut == 30
    assert len({json.dumps(row.input_ids) for row in read.rows}) > 20
