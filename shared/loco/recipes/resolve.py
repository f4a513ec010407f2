"""Recipes: from adapters/NAME/adapter.yaml, a profile and a request to a resolved `JobSpec`.

A recipe holds the defaults of every stage and named profiles that override them; the request
overrides both. The catalog adapters/base_models.yaml names the base models that may be used.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.errors import (
    InvalidRequest,
    StageGap,
    UnknownAdapter,
    UnknownProfile,
    spelling,
)
from loco.contracts.evaluation import ItemSource, Role
from loco.contracts.fields import field_paths
from loco.contracts.hub_ids import check_hub_id
from loco.contracts.requests import DEFAULT_PROFILE, JobRequest
from loco.contracts.sources import (
    ArithmeticSource,
    DatasetSource,
    ReasoningGymSource,
    SelfSource,
)
from loco.contracts.specs import NAME_PATTERN, JobSpec
from loco.contracts.stages import Stage
from loco.recipes.catalog import base_model
from loco.recipes.data_files import named_data_sets
from loco.recipes.documents import read_yaml, validated
from loco.recipes.fields import FROM_THE_TOP, settable
from loco.recipes.own_answers import check_source

RECIPE = "adapter.yaml"
#: Stands for the rows that each job brings, where a recipe names no source.
BROUGHT = DatasetSource(kind="dataset", dataset="rows-of-the-job")


class Recipe(Contract):
    """The content of adapters/NAME/adapter.yaml."""

    name: str = Field(description="Name of the adapter, equal to its folder's.")
    description: str = Field(description="What the adapter is good at, one line.")
    base_model: str = Field(description="Name in the catalog of base models.")
    model_name: str = Field(description="Name of the built model in Ollama.")
    prepare: dict[str, Any] = Field({}, description="Settings of stage prepare.")
    train: dict[str, Any] = Field({}, description="Settings of stage train.")
    export: dict[str, Any] = Field({}, description="Settings of stage export.")
    register_: dict[str, Any] = Field(
        {}, alias="register", description="Settings of stage register."
    )
    eval: dict[str, Any] = Field({}, description="Settings of stage eval.")
    profiles: dict[str, dict[str, Any]] = Field(
        {}, description="Name to overrides: `base_model` and the stage sections."
    )

    @property
    def profile_names(self) -> tuple[str, ...]:
        """The profiles a request may name."""
        return (DEFAULT_PROFILE, *(p for p in self.profiles if p != DEFAULT_PROFILE))


def adapter_names(adapters_dir: Path) -> list[str]:
    """Names of the adapters that have a recipe, sorted."""
    return sorted(p.parent.name for p in adapters_dir.glob(f"*/{RECIPE}"))


def load_recipe(adapters_dir: Path, name: str) -> Recipe:
    """The recipe of an adapter.

    Raises:
        UnknownAdapter: no such adapter, or the name could never be one.
        InvalidRequest: the recipe's YAML or a field of it is wrong.
    """
    if not re.fullmatch(NAME_PATTERN, name) or not (adapters_dir / name / RECIPE).is_file():
        here = ", ".join(adapter_names(adapters_dir)) or "none"
        raise UnknownAdapter(
            f"No adapter {name!r}. Adapters here: {here}.",
            param="adapter",
            hint="Name one of them, or send yours with `loco adapters push`.",
        )
    path = adapters_dir / name / RECIPE
    known = (*field_paths(Recipe), *settable())
    recipe = validated(Recipe, read_yaml(path), where=f"{name}/{RECIPE}", known=known)
    if recipe.name != name:
        raise InvalidRequest(
            f"{name}/{RECIPE}: name is {recipe.name!r}, the folder is {name!r}.",
            param="name",
            hint="Make them equal.",
        )
    return recipe


def resolve(adapters_dir: Path, request: JobRequest, recipe: Recipe | None = None) -> JobSpec:
    """The spec a request means, every default filled in.

    Args:
        adapters_dir: recipes and catalog.
        request: what is asked for.
        recipe: of the adapter; none: the one of its folder.

    Raises:
        UnknownAdapter, UnknownProfile, UnknownBaseModel, StageGap: see there.
        InvalidRequest: an override has an unknown field or a wrong value; `param` names it.
    """
    recipe = recipe or load_recipe(adapters_dir, request.adapter)
    if request.profile not in recipe.profile_names:
        raise UnknownProfile(
            f"Adapter {recipe.name!r} has no profile {request.profile!r}. "
            f"Profiles: {', '.join(recipe.profile_names)}.",
            param="profile",
            hint="Name one of them.",
        )
    profile = recipe.profiles.get(request.profile, {})
    unknown = set(profile) - {"base_model", "model_name", "seed", *(s.value for s in Stage)}
    if unknown:
        raise InvalidRequest(
            f"{recipe.name}/{RECIPE}: profile {request.profile!r} has unknown fields "
            f"{', '.join(sorted(unknown))}.",
            param=f"profiles.{request.profile}",
            hint=spelling(min(unknown), (*settable(), "model_name")),
        )
    for stage in Stage:
        if not isinstance(profile.get(stage.value) or {}, Mapping):
            raise InvalidRequest(
                f"{recipe.name}/{RECIPE}: profile {request.profile!r}: {stage} must be a mapping.",
                param=f"profiles.{request.profile}.{stage}",
                hint=f"Write {stage}: {{field: value}}.",
            )
    base = base_model(
        adapters_dir, request.base_model or profile.get("base_model") or recipe.base_model
    )
    model_name = _served_name(recipe, request, base.name)
    seed = request.seed if request.seed is not None else profile.get("seed", 0)
    document: dict[str, Any] = {
        "adapter": recipe.name,
        "profile": request.profile,
        "stages": _checked_stages(request.stages),
        "from_job": request.from_job,
        "reuse": request.reuse,
        "place": "" if model_name == recipe.model_name else f"served/{model_name}",
        "seed": seed,
    }
    common: dict[Stage, dict[str, Any]] = {
        Stage.PREPARE: {"seed": seed},
        Stage.TRAIN: {"seed": seed, "base_model": base},
        Stage.EXPORT: {"base_model": base, "model_name": model_name},
        Stage.REGISTER: {"base_model": base, "model_name": model_name},
        Stage.EVAL: {"base_model": base, "seed": seed},
    }
    for stage in Stage:
        field = "register_" if stage is Stage.REGISTER else stage.value
        asked = getattr(request, field)
        inner = profile.get(stage.value) or {}
        _check_fixed(stage, asked, where="", top="request")
        _check_fixed(
            stage,
            inner,
            where=f"{recipe.name}/{RECIPE}: profiles.{request.profile}.",
            top="profile",
        )
        _check_fixed(stage, getattr(recipe, field), where=f"{recipe.name}/{RECIPE}: ", top="recipe")
        if stage is Stage.REGISTER:  # it looks for the file that export names by its type
            exported = document[Stage.EXPORT.value]
            common[stage] |= {k: v for k, v in exported.items() if k == "quantization"}
        document[stage.value] = merge(
            merge(merge(common[stage], getattr(recipe, field)), inner),
            asked,
        )
    sets = document[Stage.EVAL.value].get("sets")
    if isinstance(sets, Mapping):
        document[Stage.EVAL.value]["sets"] = {n: s for n, s in sets.items() if s is not None}
    if "eval_sets" in document[Stage.PREPARE.value]:
        raise InvalidRequest(
            "prepare.eval_sets follows from eval.sets.",
            param="prepare.eval_sets",
            hint="Name the sets of problems in eval.sets.",
        )
    if document[Stage.PREPARE.value].get("source") is None:
        raise InvalidRequest(
            f"prepare.source: {recipe.name}/{RECIPE} names none, so each job brings its rows.",
            param="prepare.source",
            hint=f"`loco submit {recipe.name} --data rows.csv` does, or set prepare.source in the recipe.",
        )
    check_source(document[Stage.PREPARE.value].get("source"))
    job = validated(JobSpec, document, where="", known=settable())
    for part in (job.prepare, job.eval):
        for field, name in named_data_sets(part).items():
            check_hub_id(name, param=field)
    if request.stages is None and not job.eval.sets:  # nothing to measure, and nobody asked for it
        job = job.model_copy(update={"stages": tuple(s for s in job.stages if s is not Stage.EVAL)})
    _check_sets(job)
    _check_validation_source(job)
    _check_select(job)
    _check_preference(job)
    served = {  # the Modelfile says what register sends to Ollama
        field: getattr(job.register_, field)
        for field in ("temperature", "num_ctx", "num_predict")
        if field not in document[Stage.EXPORT.value]
    }
    kept_out = {
        name: ItemSource(source=s.source, count=s.count, seed=s.seed)
        for name, s in job.eval.sets.items()
    }
    asked = base if isinstance(job.prepare.source, SelfSource) else None
    return job.model_copy(
        update={
            "export": job.export.model_copy(update=served),
            "prepare": job.prepare.model_copy(update={"eval_sets": kept_out, "base_model": asked}),
        }
    )


def resolve_recipe(adapters_dir: Path, name: str, profile: str) -> JobSpec:
    """The spec of a job that sets nothing but its rows, and these (`BROUGHT`) only where it has to.

    Raises:
        UnknownAdapter, UnknownProfile, UnknownBaseModel, InvalidRequest: see `resolve`.
    """
    recipe = load_recipe(adapters_dir, name)
    own = recipe.profiles.get(profile, {}).get(Stage.PREPARE.value)
    named = merge(recipe.prepare, own if isinstance(own, Mapping) else {}).get("source")
    brought = {} if named is not None else {"source": BROUGHT.model_dump()}
    return resolve(adapters_dir, JobRequest(adapter=name, profile=profile, prepare=brought))


def _check_validation_source(job: JobSpec) -> None:
    """Refuses rows with answers of others to measure a base's own answers on."""
    if job.prepare.validation_source is not None and isinstance(job.prepare.source, SelfSource):
        raise InvalidRequest(
            "prepare.validation_source cannot be set with source self, which answers its own "
            "validation questions.",
            param="prepare.validation_source",
            hint="Leave it out, or take a source with answers.",
        )


def _check_select(job: JobSpec) -> None:
    """Refuses to choose by rows that the job itself keeps none of; another's are seen in train."""
    trains = {Stage.PREPARE, Stage.TRAIN} <= set(job.stages)
    if trains and job.train.select == "best" and not job.prepare.validation:
        raise InvalidRequest(
            "train.select: best needs validation rows, and prepare.validation is 0.",
            param="train.select",
            hint="Set prepare.validation (32 is the default), or train.select: last.",
        )


def _check_preference(job: JobSpec) -> None:
    """Refuses pairs that the job's own prepare makes none of; another's are seen in train."""
    source = job.prepare.source
    # whether the rows of a data set are pairs is known once it is looked up
    makes_pairs = isinstance(source, DatasetSource) or (
        isinstance(source, SelfSource) and source.pairs > 0
    )
    trains = {Stage.PREPARE, Stage.TRAIN} <= set(job.stages)
    if trains and job.train.preference and not makes_pairs:
        raise InvalidRequest(
            "train.preference needs pairs of a right and a wrong answer, and prepare makes none.",
            param="train.preference",
            hint="Take prepare.source.kind: self and set prepare.source.pairs, or train without pairs: "
            "`--set train.preference=null`.",
        )


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`override` laid over `base`, mapping by mapping.

    A mapping that changes its `kind` (a data source) replaces the old one whole.
    """
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            replaced = "kind" in value and value["kind"] != old.get("kind")
            merged[key] = dict(value) if replaced else merge(old, value)
        else:
            merged[key] = value
    return merged


def _check_fixed(stage: Stage, section: Mapping[str, Any], *, where: str, top: str) -> None:
    """Refuses in a stage's section what reaches every stage from the top."""
    fixed = next((name for name in FROM_THE_TOP if name in section), None)
    if fixed is None:
        return
    hint = f"Set {fixed} at the top of the {top}; it reaches every stage that needs it."
    if (fixed, top) == ("model_name", "request"):
        hint = "Copy the adapter's folder to make one of another name."
    raise InvalidRequest(
        f"{where}{stage}.{fixed} follows from the recipe.", param=f"{stage}.{fixed}", hint=hint
    )


def _served_name(recipe: Recipe, request: JobRequest, base: str) -> str:
    """The model's name in Ollama: only what is built on the recipe's own base has the recipe's.

    A smaller stand-in must not take the place of the adapter that people use.
    """
    profile = recipe.profiles.get(request.profile, {})
    if request.base_model is None or request.base_model == profile.get("base_model"):
        named = profile.get("model_name")
        if named is not None:
            return str(named)
        if base == recipe.base_model:
            return recipe.model_name
        return f"{recipe.model_name}-{request.profile}"
    if base == recipe.base_model:
        return recipe.model_name
    return f"{recipe.model_name}-{base.replace('.', '-')}"


def _check_sets(job: JobSpec) -> None:
    if Stage.EVAL in job.stages and not job.eval.sets:
        raise InvalidRequest(
            "eval.sets is empty: eval has nothing to ask.",
            param="eval.sets",
            hint="Name a set of problems (docs/eval.md), or end before eval: "
            "`stages: [prepare, train, export, register]`.",
        )
    primary = [name for name, s in job.eval.sets.items() if s.role is Role.PRIMARY]
    if len(primary) > 1:
        raise InvalidRequest(
            f"eval.sets: {' and '.join(primary)} are all primary; one set decides.",
            param="eval.sets",
            hint="Give the others the role `guard` or `shown`.",
        )
    for name, entry in job.eval.sets.items():
        if entry.count == "all" and isinstance(entry.source, ReasoningGymSource | ArithmeticSource):
            raise InvalidRequest(
                f"eval.sets.{name}.count is `all`, but source {entry.source.kind} has no end.",
                param=f"eval.sets.{name}.count",
                hint="Give the number of problems to generate, e.g. 200.",
            )


def _checked_stages(asked: tuple[Stage, ...] | None) -> tuple[Stage, ...]:
    order = tuple(Stage)
    if asked is None:
        return order
    if not asked:
        raise InvalidRequest("stages is empty.", param="stages", hint="Leave it out to run all.")
    start, stop = order.index(asked[0]), order.index(asked[-1])
    if asked != order[start : stop + 1]:
        raise StageGap(
            f"stages {', '.join(asked)} are not consecutive.",
            param="stages",
            hint=f"Stages run in the order {', '.join(order)}; name a run without holes.",
        )
    return asked
