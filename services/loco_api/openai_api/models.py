"""GET and DELETE /v1/models: what Ollama serves, and the bases that may be fine-tuned."""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path

from loco.contracts.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    OllamaRefused,
    OllamaUnavailable,
)
from loco.recipes.catalog import load_catalog
from loco.serving.host import OllamaHost, full_name
from loco_api.auth import SUBMIT, Who
from loco_api.context import Context, Here
from loco_api.errors import responses
from loco_api.openai_api.forms import Deleted, OpenAIList, OpenAIModel

router = APIRouter(tags=["openai"])

#: A candidate: the model's name and the ID of the job that built it.
_CANDIDATE = re.compile(
    r"(?P<model>[a-z0-9][a-z0-9-]{0,62}):(?P<job>[0-9]{8}-[0-9]{6}-[0-9a-f]{6})"
)

ModelName = Annotated[
    str, Path(max_length=300, description="Name of a model.", examples=["locollm-math:latest"])
]


class ModelList(OpenAIList[OpenAIModel]):
    """Models, by name."""


@router.get(
    "/v1/models",
    operation_id="listOpenAIModels",
    summary="List models",
    responses=responses(InvalidRequest, OllamaUnavailable, OllamaRefused, openai=True),
)
def list_models(here: Here) -> ModelList:
    """What Ollama serves, and the base models of the catalog, which a job may take as `model`."""
    models = tuple(sorted(_models(here), key=lambda model: model.id))
    return ModelList(
        data=models,
        first_id=models[0].id if models else None,
        last_id=models[-1].id if models else None,
    )


@router.get(
    "/v1/models/{model:path}",
    operation_id="getOpenAIModel",
    summary="One model",
    responses=responses(InvalidRequest, NotFound, OllamaUnavailable, OllamaRefused, openai=True),
)
def get_model(model: ModelName, here: Here) -> OpenAIModel:
    """One model of the list."""
    for found in _models(here):
        if found.id in (model, full_name(model)):
            return found.model_copy(update={"id": model})
    raise _no_model(model)


@router.delete(
    "/v1/models/{model:path}",
    operation_id="deleteOpenAIModel",
    summary="Delete a fine-tuned model",
    dependencies=[SUBMIT],
    responses=responses(
        InvalidRequest, NotFound, Conflict, OllamaUnavailable, OllamaRefused, openai=True
    ),
)
def delete_model(model: ModelName, here: Here, who: Who) -> Deleted:
    """Deletes a candidate (`MODEL:JOB_ID`) from Ollama. Only for its job's owner and admins.

    Its version stays in the registry: `POST /adapters/{name}/versions/{n}/restore` creates it again.
    """
    named = _CANDIDATE.fullmatch(model)
    if named is None:
        raise InvalidRequest(
            f"{model!r:.200} is not a fine-tuned model of this server. Their names look "
            "like MODEL:JOB_ID.",
            param="model",
            hint="You cannot delete bases and `latest` here. `ollama rm` deletes any model.",
        )
    try:
        job = here.ledger.job(named["job"])
    except NotFound:
        raise _no_model(model) from None
    if job.spec.register_.model_name != named["model"]:
        raise _no_model(model)
    who.check_may_change(job)
    pointer = here.ledger.registry.promoted(named["model"])
    if pointer is not None and pointer.candidate == model:
        raise Conflict(
            f"{model} serves as {pointer.latest} now.",
            param="model",
            hint="Promote another version first (`loco promote`), or roll back.",
        )
    with OllamaHost(here.settings.ollama_host) as ollama:
        if model not in ollama.modified():
            raise _no_model(model)
        ollama.delete(model)
    return Deleted(id=model, object="model")


def _models(here: Context) -> Iterator[OpenAIModel]:
    with OllamaHost(here.settings.ollama_host) as ollama:
        there = ollama.modified()
    ours = {pointer.latest for pointer in here.ledger.registry.pointers()}
    for name, modified in there.items():
        built = name in ours or _CANDIDATE.fullmatch(name) is not None
        yield OpenAIModel(
            id=name, created=_seconds(modified), owned_by="locollm" if built else "ollama"
        )
    for name, base in load_catalog(here.settings.adapters_dir).items():
        yield OpenAIModel(
            id=name, created=_seconds(there.get(full_name(base.ollama))), owned_by="base"
        )


def _seconds(moment: datetime | None) -> int:
    return int(moment.timestamp()) if moment else 0


def _no_model(name: str) -> NotFound:
    return NotFound(
        f"No model {name!r:.200}.", param="model", hint="GET /v1/models lists the models."
    )
