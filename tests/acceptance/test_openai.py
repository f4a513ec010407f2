"""The real `openai` package against real services: a file of rows becomes a model that is chatted with."""

import json
import time

import openai
import pytest

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(900)]

#: Whatever is asked, the answer begins the same way: what a tiny model learns from few rows.
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Where is parcel {number}?"},
            {"role": "assistant", "content": f"Ahoy! Parcel {number} is on its way."},
        ]
    }
    for number in range(11, 27)
]


def test_a_file_becomes_a_model_that_answers_as_its_rows_do(start) -> None:
    up = start().wait_ready()
    content = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    with openai.OpenAI(base_url=f"{up.state()['server']}/v1", api_key="none") as client:
        rows = client.files.create(file=("parcels.jsonl", content), purpose="fine-tune")
        jobs = client.fine_tuning.jobs
        job = jobs.create(
            model="smollm2-135m-instruct",
            training_file=rows.id,
            suffix="parcels",
            hyperparameters={"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 2},
        )
        deadline = time.monotonic() + 600
        while job.status not in ("succeeded", "failed", "cancelled"):
            assert time.monotonic() < deadline, job
            time.sleep(0.5)
            job = jobs.retrieve(job.id)
        assert job.status == "succeeded", job.error
        assert job.fine_tuned_model == f"locollm-ft-smollm2-135m-instruct-parcels:{job.id}"
        assert job.trained_tokens
        types = {event.type for event in jobs.list_events(job.id, limit=100)}
        assert types == {"message", "metrics"}
        losses = client.files.content(job.result_files[0]).text.splitlines()
        first, last = (float(line.split(",")[1]) for line in (losses[1], losses[-1]))
        assert last < first / 2
        assert job.fine_tuned_model in [model.id for model in client.models.list()]
        said = client.chat.completions.create(
            model=job.fine_tuned_model,
            messages=[{"role": "user", "content": "Where is parcel 73?"}],
            temperature=0,
            max_completion_tokens=20,
        )
        assert said.choices[0].message.content.startswith("Ahoy!")
        pieces = client.chat.completions.create(
            model=job.fine_tuned_model,
            messages=[{"role": "user", "content": "Where is parcel 73?"}],
            temperature=0,
            max_completion_tokens=20,
            stream=True,
        )
        text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
        assert text == said.choices[0].message.content
        base = client.models.retrieve("smollm2-135m-instruct")
        assert base.owned_by == "base"
        assert client.models.delete(job.fine_tuned_model).deleted
