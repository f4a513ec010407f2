"""Recipes: from adapters/NAME/adapter.yaml, a profile and a request to a resolved `JobSpec`.

A recipe holds the defaults of every stage and named profiles that override them; the request
overrides both. The catalog adapters/base_models.yaml names the base models that may be used.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, ValidationError, field_validator

from loco.contracts import Contract
from loco.errors import InvalidRequest, StageGap, UnknownAdapter, UnknownBaseModel, UnknownProfile
from loco.specs import LARGEST_SEED, NAME_PATTERN, BaseModelSpec, JobSpec
from loco.stages import Stage

RECIPE = "adapter.yaml"
CATALOG = "base_models.yaml"
DEFAULT_PROFILE = "default"
#: libyaml where PyYAML was built with it: the pure Python parser takes most of a submit's time.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: Levels of mappings and lists in an override; a spec has four.
_DEEPEST = 20


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


class JobRequest(Contract):
    """The body of `POST /jobs`."""

    adapter: str = Field(description="Name of an adapter.", examples=["math"])
    profile: str = Field(DEFAULT_PROFILE, description="Profile of the recipe.", examples=["tiny"])
    stages: tuple[Stage, ...] | None = Field(
        None, description="Consecutive stages to run; none: all five."
    )
    from_job: str | None = Field(
        None,
        description="Job whose outputs stand in for the stages left out; none: the newest that fits.",
    )
    base_model: str | None = Field(None, description="Name of a base model of the catalog.")
    prepare: dict[str, Any] = Field({}, description="Overrides of the prepare spec.")
    train: dict[str, Any] = Field({}, description="Overrides of the train spec.")
    export: dict[str, Any] = Field({}, description="Overrides of the export spec.")
    register_: dict[str, Any] = Field(
        {}, alias="register", description="Overrides of the register spec."
    )
    eval: dict[str, Any] = Field({}, description="Overrides of the eval spec.")
    seed: int | None = Field(
        None, ge=0, le=LARGEST_SEED, description="Seed of every stage that sets none."
    )
    reuse: bool = Field(True, description="Take over committed stages whose inputs match.")
    priority: int = Field(0, ge=-100, le=100, description="Higher runs first.")
    metadata: dict[
        Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]
    ] = Field(
        {},
        max_length=32,
        description="Yours; not interpreted. At most 32 keys of 64 characters, values of 512.",
    )

    @field_validator("prepare", "train", "export", "register_", "eval")
    @classmethod
    def _is_plain_json(cls, overrides: dict[str, Any]) -> dict[str, Any]:
        """Python's JSON parser lets more through than JSON and UTF-8 can carry on."""
        if _is_deeper(overrides, _DEEPEST):
            raise ValueError(f"nested more than {_DEEPEST} levels deep")
        try:
            json.dumps(overrides, allow_nan=False, ensure_ascii=False).encode()
        except ValueError as error:
            raise ValueError(f"not plain JSON: {error}") from error
        return overrides


def _is_deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _is_deeper(entry, levels - 1) for entry in inner)


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
            hint=f"Name one of them, or write {RECIPE} in a folder of that name.",
        )
    path = adapters_dir / name / RECIPE
    recipe = _validate(Recipe, _read_yaml(path), where=f"{name}/{RECIPE}")
    if recipe.name != name:
        raise InvalidRequest(
            f"{name}/{RECIPE}: name is {recipe.name!r}, the folder is {name!r}.",
            param="name",
            hint="Make them equal.",
        )
    return recipe


def load_catalog(adapters_dir: Path) -> dict[str, BaseModelSpec]:
    """The base models that may be used, by name."""
    entries = _read_yaml(adapters_dir / CATALOG)
    return {
        name: _validate(BaseModelSpec, _named(name, entry), where=f"{CATALOG}: {name}")
        for name, entry in entries.items()
    }


def resolve(adapters_dir: Path, request: JobRequest) -> JobSpec:
    """The spec a request means, every default filled in.

    Raises:
        UnknownAdapter, UnknownProfile, UnknownBaseModel, StageGap: see there.
        InvalidRequest: an override has an unknown field or a wrong value; `param` names it.
    """
    recipe = load_recipe(adapters_dir, request.adapter)
    if request.profile not in recipe.profile_names:
        raise UnknownProfile(
            f"Adapter {recipe.name!r} has no profile {request.profile!r}. "
            f"Profiles: {', '.join(recipe.profile_names)}.",
            param="profile",
            hint="Name one of them.",
        )
    profile = recipe.profiles.get(request.profile, {})
    unknown = set(profile) - {"base_model", "seed", *(s.value for s in Stage)}
    if unknown:
        raise InvalidRequest(
            f"{recipe.name}/{RECIPE}: profile {request.profile!r} has unknown fields "
            f"{', '.join(sorted(unknown))}.",
            param=f"profiles.{request.profile}",
        )
    for stage in Stage:
        if not isinstance(profile.get(stage.value) or {}, Mapping):
            raise InvalidRequest(
                f"{recipe.name}/{RECIPE}: profile {request.profile!r}: {stage} must be a mapping.",
                param=f"profiles.{request.profile}.{stage}",
                hint=f"Write {stage}: {{field: value}}.",
            )
    base = _base_model(
        adapters_dir, request.base_model or profile.get("base_model") or recipe.base_model
    )
    seed = request.seed if request.seed is not None else profile.get("seed", 0)
    document: dict[str, Any] = {
        "adapter": recipe.name,
        "profile": request.profile,
        "stages": _checked_stages(request.stages),
        "from_job": request.from_job,
        "reuse": request.reuse,
        "seed": seed,
    }
    common: dict[Stage, dict[str, Any]] = {
        Stage.PREPARE: {"seed": seed},
        Stage.TRAIN: {"seed": seed, "base_model": base},
        Stage.EXPORT: {"base_model": base, "model_name": recipe.model_name},
        Stage.REGISTER: {"base_model": base, "model_name": recipe.model_name},
        Stage.EVAL: {"base_model": base, "seed": seed},
    }
    for stage in Stage:
        field = "register_" if stage is Stage.REGISTER else stage.value
        asked = getattr(request, field)
        for fixed in ("base_model", "model_name"):
            if fixed in asked:
                raise InvalidRequest(
                    f"{stage}.{fixed} follows from the recipe.",
                    param=f"{stage}.{fixed}",
                    hint="Set base_model at the top of the request."
                    if fixed == "base_model"
                    else "Copy the adapter's folder to make one of another name.",
                )
        if stage is Stage.REGISTER:  # it looks for the file that export names by its type
            exported = document[Stage.EXPORT.value]
            common[stage] |= {k: v for k, v in exported.items() if k == "quantization"}
        document[stage.value] = merge(
            merge(merge(common[stage], getattr(recipe, field)), profile.get(stage.value) or {}),
            asked,
        )
    job = _validate(JobSpec, document, where="")
    served = {  # the Modelfile says what register sends to Ollama
        field: getattr(job.register_, field)
        for field in ("temperature", "num_ctx", "num_predict")
        if field not in document[Stage.EXPORT.value]
    }
    return job.model_copy(update={"export": job.export.model_copy(update=served)})


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


def _base_model(adapters_dir: Path, name: str) -> BaseModelSpec:
    catalog = load_catalog(adapters_dir)
    if name not in catalog:
        raise UnknownBaseModel(
            f"No base model {name!r}. Base models here: {', '.join(sorted(catalog))}.",
            param="base_model",
            hint=f"Name one of them, or add it to {CATALOG}.",
        )
    return catalog[name]


def _named(name: str, entry: Any) -> Any:
    """An entry of the catalog with its name; what is no mapping is left for validation to refuse."""
    return {"name": name, **entry} if isinstance(entry, Mapping) else entry


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


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.load(path.read_text(), Loader=_LOADER)  # noqa: S506 (a safe loader)
    except FileNotFoundError as error:
        raise InvalidRequest(
            f"{path.name} is missing in {path.parent}.",
            hint="Point LOCO_ADAPTERS_DIR at a folder like the repository's adapters/.",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path}: not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"{path}: the top level must be a mapping.")
    return document


_ModelT = TypeVar("_ModelT", bound=Contract)


def _validate(model: type[_ModelT], document: Any, *, where: str) -> _ModelT:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise invalid(error, where=where) from error


def invalid(error: ValidationError, *, where: str = "") -> InvalidRequest:
    """A pydantic error as one of ours: the first fault, its field, and what is allowed there."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]).replace("register_", "register")
    place = f"{where}: {field}" if where else field
    hint = None
    if first["type"] == "extra_forbidden":
        message = f"{place}: unknown field."
        hint = "Check the spelling; GET /openapi.json and docs/recipes.md list every field."
    else:
        message = f"{place}: {first['msg']} (got {first['input']!r:.80})."
    return InvalidRequest(message, param=field, hint=hint)
