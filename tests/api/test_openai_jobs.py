"""Files and fine-tuning jobs over /v1 by the real `openai` package; hands do the workers' part."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from loco.contracts.jobs import Checkpoint
from loco.contracts.keys import Scope
from loco.contracts.stages import Stage
from loco.ledger.keys import Keys
from loco.recipes import plain
from loco.recipes.catalog import load_catalog
from loco.recipes.plain import plain_name

pytestmark = pytest.mark.redis

BASE = "smollm2-135m-instruct"
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Where is parcel {number}?"},
            {"role": "assistant", "content": f"Ahoy! Parcel {number} is on its way."},
        ]
    }
    for number in range(20)
]
PAIR = {
    "input": {"messages": [{"role": "user", "content": "Late!"}]},
    "preferred_output": [{"role": "assistant", "content": "Ahoy!"}],
    "non_preferred_output": [{"role": "assistant", "content": "No."}],
}


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def client(live_api) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{live_api.url}/v1", api_key="unused", max_retries=0, timeout=60
    ) as client:
        yield client


@pytest.fixture
def keys(redis_url: str, namespace: str) -> Iterator[Keys]:
    keys = Keys.connect(redis_url, namespace=namespace)
    yield keys
    keys.close()


@pytest.fixture
def file(client) -> str:
    return client.files.create(file=("support.jsonl", lines(ROWS)), purpose="fine-tune").id


#: What is shown of a training: three steps, a pass each, and the loss on the validation rows before.
TRAINED: dict[str, Any] = {
    "tokens": 1000,
    "total_steps": 3,
    "log": [
        {"step": n, "epoch": float(n), "loss": loss, "learning_rate": 1e-3}
        for n, loss in enumerate((2.0, 1.5, 1.0), start=1)
    ],
    "validations": [{"step": 0, "epoch": 0.0, "loss": 2.5}],
    "selected_step": 3,
}


def test_a_file_comes_back_as_it_was_sent_and_goes(client):
    content = lines(ROWS)
    sent = client.files.create(file=("my support (1).jsonl", content), purpose="fine-tune")
    assert (sent.object, sent.bytes, sent.status) == ("file", len(content), "processed")
    assert (sent.filename, sent.purpose) == ("my-support-1-.jsonl", "fine-tune")
    assert client.files.retrieve(sent.id) == sent
    assert client.files.content(sent.id).read() == content
    other = client.files.create(file=("b.jsonl", lines(ROWS[:3])), purpose="fine-tune")
    assert [f.id for f in client.files.list(limit=1)] == [other.id, sent.id], "two pages"
    assert [f.id for f in client.files.list(order="asc")] == [sent.id, other.id]
    assert list(client.files.list(purpose="batch")) == []
    assert client.files.delete(sent.id).deleted
    with pytest.raises(openai.NotFoundError, match="No file"):
        client.files.retrieve(sent.id)


def test_a_large_file_is_taken_in_pieces(client):
    rows = [
        {"messages": [{"role": "user", "content": f"{n} {'x' * 1000}"}, ROWS[0]["messages"][1]]}
        for n in range(3000)
    ]
    sent = client.files.create(file=("large.jsonl", lines(rows)), purpose="fine-tune")
    assert sent.bytes > 3 * 2**20
    assert client.files.content(sent.id).read() == lines(rows)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (
            {"file": ("a.jsonl", lines(ROWS)), "purpose": "batch"},
            "purpose: 'batch' is not supported",
        ),
        ({"file": ("a.jsonl", b'{"messages": []}\n'), "purpose": "fine-tune"}, "line 1"),
        ({"file": ("a.jsonl", b"never JSON"), "purpose": "fine-tune"}, "The columns are"),
        ({"file": ("a.jsonl", b""), "purpose": "fine-tune"}, "no rows"),
        (
            {
                "file": ("a.jsonl", lines(ROWS)),
                "purpose": "fine-tune",
                "expires_after": {"anchor": "created_at", "seconds": 3600},
            },
            "unknown field. Files stay until they are deleted",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_leaves_nothing(client, form, words):
    with pytest.raises(openai.BadRequestError, match=words):
        client.files.create(**form)
    assert list(client.files.list()) == []


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"no form at all"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="f'),
        ("multipart/form-data; boundary=b", b"--b--\r\n"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{"mess',
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"x" * 100_000,
        ),
    ],
)
def test_a_body_that_is_no_form_is_refused(live_api, client, kind, body):
    answer = httpx.post(
        f"{live_api.url}/v1/files",
        content=body,
        headers={"Content-Type": kind},
        trust_env=False,
        timeout=30,
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert list(client.files.list()) == []


def test_a_job_runs_with_a_plain_recipe_and_says_what_it_does(client, file, adapters_dir, ledger):
    job = client.fine_tuning.jobs.create(
        model=BASE, training_file=file, suffix="My Support!", metadata={"team": "help"}, seed=7
    )
    assert (job.object, job.status, job.model) == ("fine_tuning.job", "validating_files", BASE)
    assert (job.training_file, job.validation_file, job.seed) == (file, None, 7)
    assert (job.metadata, job.organization_id) == ({"team": "help"}, "local")
    assert (job.fine_tuned_model, job.finished_at, job.trained_tokens) == (None, None, None)
    chosen = job.method.supervised.hyperparameters
    assert (chosen.n_epochs, chosen.batch_size, chosen.learning_rate_multiplier) == (5, 8, 1)
    assert client.fine_tuning.jobs.retrieve(job.id) == job
    stored = ledger.job(job.id)
    assert stored.adapter == f"ft-{BASE}-my-support"
    assert (adapters_dir / stored.adapter / "adapter.yaml").is_file()
    assert [t.stage for t in stored.stages] == [s for s in Stage if s is not Stage.EVAL]
    assert stored.spec.register_.model_name == f"locollm-ft-{BASE}-my-support"
    assert stored.spec.train.learning_rate == 1e-3
    assert (stored.spec.prepare.examples, stored.spec.prepare.validation) == (20, 0)
    by_ollama = client.fine_tuning.jobs.create(
        model="smollm2:135m", training_file=file, suffix="my-support"
    )
    assert ledger.job(by_ollama.id).adapter == stored.adapter


def test_a_plain_adapter_is_shown_with_who_brings_its_rows(client, file, live_api):
    client.fine_tuning.jobs.create(model=BASE, training_file=file)
    shown = httpx.get(f"{live_api.url}/adapters/ft-{BASE}", trust_env=False)
    assert shown.status_code == 200, shown.text
    assert (shown.json()["resolved"], shown.json()["recipe"]["base_model"]) == (None, BASE)
    assert shown.json()["error"]["param"] == "prepare.source"
    assert "each job must bring its rows" in shown.json()["error"]["message"]


def test_hyperparameters_are_taken_from_method_or_beside_it(client, file, ledger):
    asked = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
    for how in (
        {"hyperparameters": asked},
        {"method": {"type": "supervised", "supervised": {"hyperparameters": asked}}},
    ):
        job = client.fine_tuning.jobs.create(model=BASE, training_file=file, **how)
        assert job.hyperparameters.to_dict() == asked
        train = ledger.job(job.id).spec.train
        assert (train.epochs, train.step_rows, train.learning_rate) == (2, 4, 5e-4)


def test_pairs_are_for_dpo_and_chats_for_supervised(client, file, ledger):
    pairs = client.files.create(file=("pairs.jsonl", lines([PAIR])), purpose="fine-tune").id
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 2}}}
    job = client.fine_tuning.jobs.create(model=BASE, training_file=pairs, method=method)
    assert job.method.type == "dpo"
    learnt = job.method.dpo.hyperparameters
    assert (learnt.beta, learnt.n_epochs, learnt.learning_rate_multiplier) == (0.2, 2, 1)
    spec = ledger.job(job.id).spec.train
    assert (spec.epochs, spec.preference.beta, spec.preference.epochs) == (1, 0.2, 2)
    with pytest.raises(openai.BadRequestError, match="learns from pairs, but training_file"):
        client.fine_tuning.jobs.create(model=BASE, training_file=file, method=method)
    with pytest.raises(openai.BadRequestError, match="has pairs"):
        client.fine_tuning.jobs.create(model=BASE, training_file=pairs)


def test_an_adapter_brings_its_recipe_eval_and_gate(client, file, ledger):
    extra = {"adapter": "math", "profile": "tiny"}
    job = client.fine_tuning.jobs.create(model=BASE, training_file=file, extra_body=extra)
    stored = ledger.job(job.id)
    assert (stored.adapter, stored.profile) == ("math", "tiny")
    assert [t.stage for t in stored.stages] == list(Stage)
    assert stored.spec.prepare.source.dataset == file
    assert stored.spec.register_.model_name == "locollm-math-tiny"


@pytest.mark.parametrize(
    ("changes", "kind", "words", "param"),
    [
        (
            {"model": "gpt-4o-mini"},
            openai.BadRequestError,
            "No base model .gpt-4o-mini.. Base models here: ",
            "model",
        ),
        ({"training_file": "file-x"}, openai.NotFoundError, "No file 'file-x'", "training_file"),
        ({"validation_file": "ds-0"}, openai.NotFoundError, "No file 'ds-0'", "validation_file"),
        ({"suffix": "x" * 65}, openai.BadRequestError, "at most 64 characters", "suffix"),
        ({"seed": -1}, openai.BadRequestError, "greater than or equal to 0", "seed"),
        (
            {"method": {"type": "reinforcement"}},
            openai.BadRequestError,
            "supports `supervised` and `dpo`",
            "method.type",
        ),
        (
            {"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]},
            openai.BadRequestError,
            "reports to no other service",
            "integrations",
        ),
        (
            {"hyperparameters": {"learning_rate_multiplier": 1000.1}},
            openai.BadRequestError,
            "less than or equal to 1000",
            None,
        ),
        ({"extra_body": {"colour": "blue"}}, openai.BadRequestError, "unknown field", "colour"),
        ({"extra_body": {"adapter": "maths"}}, openai.NotFoundError, "No adapter", "adapter"),
        (
            {"suffix": "x", "extra_body": {"adapter": "math"}},
            openai.BadRequestError,
            "cannot both be set",
            "suffix",
        ),
    ],
)
def test_what_a_job_cannot_be_is_said_by_field(
    client, file, adapters_dir, changes, kind, words, param
):
    with pytest.raises(kind, match=words) as refused:
        client.fine_tuning.jobs.create(**{"model": BASE, "training_file": file, **changes})
    assert not list(adapters_dir.glob("ft-*")), "what is refused makes no recipe"
    assert param is None or refused.value.param == param


def test_a_job_from_its_start_to_its_model(client, file, hands):
    job = client.fine_tuning.jobs.create(model=BASE, training_file=file)
    claim = hands.claim(Stage.PREPARE)
    assert client.fine_tuning.jobs.retrieve(job.id).status == "validating_files"
    hands.commit(claim, {"kept": 20}, {"training_data.jsonl": b"{}\n"})
    assert client.fine_tuning.jobs.retrieve(job.id).status == "queued"
    claim = hands.claim(Stage.TRAIN)
    hands.progress(
        claim, step=3, total_steps=10, loss=1.5, epoch=0.3, elapsed_seconds=6.0, eta_seconds=60.0
    )
    running = client.fine_tuning.jobs.retrieve(job.id)
    assert running.status == "running"
    assert running.estimated_finish is not None
    assert running.estimated_finish >= running.created_at + 60
    newest = client.fine_tuning.jobs.list_events(job.id, limit=1).data[0]
    assert (newest.type, newest.level) == ("metrics", "info")
    assert newest.message == "Step 3/10: training loss=1.5"
    assert newest.data == {"step": 3, "total_steps": 10, "epoch": 0.3, "train_loss": 1.5}
    assert client.fine_tuning.jobs.checkpoints.list(job.id).data == []
    hands.commit(claim, TRAINED)
    hands.commit(hands.claim(Stage.EXPORT), {})
    model = f"locollm-ft-{BASE}:{job.id}"
    register = {"ollama_host": "http://x", "ollama_version": "0.33.0", "candidate": model}
    register |= {"digest": "d", "blob": "sha256:b", "uploaded": True, "probe_answer": "4"}
    hands.commit(hands.claim(Stage.REGISTER), register)
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert (done.status, done.fine_tuned_model) == ("succeeded", model)
    assert done.finished_at is not None
    assert done.trained_tokens == 3 * 1000
    [losses] = done.result_files
    table = client.files.content(losses).text.splitlines()
    assert table[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert table[1:3] == ["0,,,2.5,", "1,2.0,,,"]
    stored = client.files.retrieve(losses)
    assert (stored.purpose, stored.bytes) == ("fine-tune-results", len("\n".join(table)) + 1)
    [checkpoint] = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert checkpoint.fine_tuned_model_checkpoint == model
    assert (checkpoint.step_number, checkpoint.metrics.train_loss) == (3, 1.0)
    told = [e.message for e in client.fine_tuning.jobs.list_events(job.id, limit=3)]
    assert told[0] == "Fine-tuning job succeeded"
    assert told[-1] == "Fine-tuning job submitted"
    with pytest.raises(openai.BadRequestError, match="is succeeded, so it cannot be cancelled"):
        client.fine_tuning.jobs.cancel(job.id)


def test_a_job_that_fails_says_why(client, file, hands):
    job = client.fine_tuning.jobs.create(model=BASE, training_file=file)
    hands.fail(hands.claim(Stage.PREPARE), "Every row is a duplicate.", hint="Send others.")
    failed = client.fine_tuning.jobs.retrieve(job.id)
    assert failed.status == "failed"
    assert failed.error.param == "training_file"
    assert failed.error.message == "Stage prepare: Every row is a duplicate. Send others."
    levels = {e.level for e in client.fine_tuning.jobs.list_events(job.id)}
    assert levels == {"info", "error"}


def test_a_paused_job_continues_from_its_checkpoint(client, file, hands, ledger):
    job = client.fine_tuning.jobs.create(model=BASE, training_file=file)
    hands.commit(hands.claim(Stage.PREPARE), {"kept": 20})
    claim = hands.claim(Stage.TRAIN)
    checkpoint = Checkpoint(path=f"ft-{BASE}/runs/{job.id}/train/a1/checkpoint-3", step=3)
    assert ledger.checkpoint(claim.task_id, claim.token, checkpoint)
    assert client.fine_tuning.jobs.pause(job.id).status == "running", "until its stage stopped"
    with pytest.raises(openai.BadRequestError, match="still being paused"):
        client.fine_tuning.jobs.resume(job.id)
    assert ledger.cancelled(claim.task_id, claim.token)
    assert client.fine_tuning.jobs.retrieve(job.id).status == "paused"
    with pytest.raises(openai.BadRequestError, match="cannot be paused"):
        client.fine_tuning.jobs.pause(job.id)
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    assert hands.claim(Stage.TRAIN).job.stage(Stage.TRAIN).checkpoints == (checkpoint,)
    with pytest.raises(openai.BadRequestError, match="is not paused"):
        client.fine_tuning.jobs.resume(job.id)


def test_a_paused_job_can_be_cancelled_and_then_not_resumed(client, file):
    job = client.fine_tuning.jobs.create(model=BASE, training_file=file)
    assert client.fine_tuning.jobs.pause(job.id).status == "paused", "nothing ran"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="Only paused jobs can be resumed"):
        client.fine_tuning.jobs.resume(job.id)


def test_jobs_are_listed_page_by_page_and_by_metadata(client, file, live_api):
    made = [
        client.fine_tuning.jobs.create(
            model=BASE, training_file=file, metadata={"n": str(n % 2)}
        ).id
        for n in range(4)
    ]
    other = httpx.post(
        f"{live_api.url}/jobs", json={"adapter": "math", "profile": "tiny"}, trust_env=False
    ).json()["id"]
    listed = [job.id for job in client.fine_tuning.jobs.list(limit=2)]
    assert listed == [other, *reversed(made)], "all of the ledger, in three pages"
    page = client.fine_tuning.jobs.list(limit=2)
    assert page.has_more
    odd = [job.id for job in client.fine_tuning.jobs.list(limit=1, metadata={"n": "1"})]
    assert odd == [made[3], made[1]]
    assert client.fine_tuning.jobs.retrieve(other).training_file == "arithmetic"
    with pytest.raises(openai.BadRequestError, match="no query parameter"):
        client.fine_tuning.jobs.list(extra_query={"colour": "blue"})


def test_the_same_key_gives_the_same_job(client, file):
    headers = {"Idempotency-Key": "nightly"}
    first, again = (
        client.fine_tuning.jobs.create(model=BASE, training_file=file, extra_headers=headers)
        for _ in range(2)
    )
    assert first.id == again.id


def test_files_are_their_owners_and_jobs_are_changed_by_theirs(client, keys):
    anna, ben = (
        client.with_options(api_key=keys.create(name, scope=Scope.SUBMIT, owner=name)[1])
        for name in ("anna", "ben")
    )
    file = anna.files.create(file=("a.jsonl", lines(ROWS)), purpose="fine-tune").id
    job = anna.fine_tuning.jobs.create(model=BASE, training_file=file)
    assert job.organization_id == "anna"
    assert list(ben.files.list()) == []
    for ask in (ben.files.retrieve, ben.files.content, ben.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(file)
    with pytest.raises(openai.NotFoundError):
        ben.fine_tuning.jobs.create(model=BASE, training_file=file)
    assert ben.fine_tuning.jobs.retrieve(job.id).id == job.id, "everybody sees jobs"
    jobs = ben.fine_tuning.jobs
    for change in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(openai.PermissionDeniedError, match="is 'anna'"):
            change(job.id)
    reader = client.with_options(api_key=keys.create("r", scope=Scope.READ, owner="anna")[1])
    assert [f.id for f in reader.files.list()] == [file]
    with pytest.raises(openai.PermissionDeniedError, match="scope submit"):
        reader.files.create(file=("a.jsonl", lines(ROWS)), purpose="fine-tune")
    with pytest.raises(openai.ConflictError, match="have not ended"):
        anna.files.delete(file)


@pytest.mark.parametrize(
    ("suffix", "name"),
    [
        (None, "ft-qwen3-4b"),
        ("Support", "ft-qwen3-4b-support"),
        ("a_b  c", "ft-qwen3-4b-a-b-c"),
        ("../../etc", "ft-qwen3-4b-etc"),
    ],
)
def test_a_suffix_becomes_a_plain_name(suffix, name):
    assert plain_name("qwen3-4b", suffix) == name


def test_names_that_had_to_be_cut_or_have_no_letters_stay_apart():
    long = {plain_name("qwen3-4b", "x" * 50 + end) for end in "ab"}
    assert len(long) == 2
    assert all(len(f"locollm-{name}") <= 63 for name in long)
    signs = {plain_name("qwen3-4b", text) for text in ("日本", "한국", "!!!")}
    assert len(signs) == 3
    assert plain_name("qwen3-4b", None) not in signs


def test_one_owners_recipes_take_no_place_of_others(client, file, adapters_dir, monkeypatch):
    monkeypatch.setattr(plain, "MOST_OF_OWNER", 2)
    create = client.fine_tuning.jobs.create
    for suffix in ("a", "b", "b"):
        create(model=BASE, training_file=file, suffix=suffix)
    with pytest.raises(openai.ConflictError, match="There are already 2 adapters ft-… of 'local'"):
        create(model=BASE, training_file=file, suffix="c")
    assert len(list(adapters_dir.glob("ft-*"))) == 2
    base = load_catalog(adapters_dir)[BASE]
    plain.ensure_plain(adapters_dir, base, "c", "bob")
    assert (adapters_dir / plain_name(BASE, "c") / "adapter.yaml").is_file()


def test_a_key_that_was_used_for_another_request_makes_no_recipe(client, file, adapters_dir):
    create, key = client.fine_tuning.jobs.create, {"Idempotency-Key": "one"}
    first = create(model=BASE, training_file=file, suffix="a", extra_headers=key)
    assert create(model=BASE, training_file=file, suffix="a", extra_headers=key).id == first.id
    with pytest.raises(openai.APIStatusError):
        create(model=BASE, training_file=file, suffix="b", extra_headers=key)
    assert [p.name for p in adapters_dir.glob("ft-*")] == [plain_name(BASE, "a")]
