"""A CSV of one's own, from a laptop to trained weights, through the command line and real services."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_rows_of_a_csv_become_an_adapter(start, tmp_path: Path, adapters_dir: Path) -> None:
    rows = tmp_path / "towns.csv"
    water = ["Elbe", "Rhine", "Spree", "Main", "Isar", "Weser", "Neckar", "Saale"]
    asked = [
        f"Which water flows by the house of the {name}?;The {name}, of course" for name in water
    ]
    rows.write_text("\n".join(["Frage;Antwort", *asked]), encoding="utf-8")
    up = start().wait_ready()
    ended = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "loco.cli.main", "--server", up.state()["server"]),
            *("submit", "math", "--profile", "tiny", "--stages", "prepare,train"),
            *("--data", str(rows), "--map", "question=Frage", "--map", "answer=Antwort"),
            *("--set", "train.max_steps=1", "--wait", "--json"),
        ],
        env=up.environment,
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    job = json.loads(ended.stdout)
    source = job["spec"]["prepare"]["source"]
    assert (source["kind"], source["format"]) == ("dataset", "csv")
    prepare, train = (stage["result"] for stage in job["stages"])
    assert prepare["kept"] == len(water)
    assert train["total_steps"] == 1
    folder = adapters_dir / "math" / "served" / "locollm-math-tiny"
    lines = (folder / "training_data.jsonl").read_text(encoding="utf-8").splitlines()
    answers = {json.loads(line)["conversations"][-1]["content"] for line in lines}
    assert answers == {f"The {name}, of course" for name in water}
