"""From a recipe, a profile and a request to a resolved spec."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from loco.cli.overrides import parse_assignments
from loco.contracts.errors import (
    InvalidRequest,
    StageGap,
    UnknownAdapter,
    UnknownBaseModel,
    UnknownProfile,
)
from loco.contracts.evaluation import Role
from loco.contracts.requests import JobRequest
from loco.contracts.sources import HuggingFaceSource, JsonlSource, SelfSource
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.recipes.catalog import load_catalog
from loco.recipes.resolve import BROUGHT, adapter_names, load_recipe, merge, resolve, resolve_recipe

Resolve = Callable[..., JobSpec]
_QUESTIONS = "prepare.source.questions"


@pytest.fixture
def ask(adapters_dir: Path) -> Resolve:
    def ask(**fields: object) -> JobSpec:
        return resolve(adapters_dir, JobRequest.model_validate({"adapter": "math", **fields}))

    return ask


@pytest.fixture
def rewrite(adapters_dir: Path) -> Callable[..., None]:
    """Changes fields of the recipe of math."""
    path = adapters_dir / "math" / "adapter.yaml"

    def rewrite(**fields: object) -> None:
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **fields}))

    return rewrite


class TestMathRecipe:
    @pytest.mark.parametrize("profile", ["default", "gold"])
    def test_hyperparameters_are_the_briefs(self, ask: Resolve, profile: str) -> None:
        spec = ask(profile=profile)
        train = spec.train
        assert train.base_model.train == "unsloth/Qwen3-4B-unsloth-bnb-4bit"
        assert train.base_model.ollama == "qwen3:4b"
        assert (train.lora.r, train.lora.alpha) == (16, 32)
        assert train.lora.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
        assert (train.learning_rate, train.epochs, train.max_length) == (2e-4, 3, 1024)
        assert train.batch_size * train.gradient_accumulation == 8
        assert train.preference is None
        assert spec.prepare.examples == 200
        assert spec.export.quantization == spec.register_.quantization == "Q4_K_M"
        assert spec.register_.model_name == "locollm-math"
        assert spec.stages == tuple(Stage)

    def test_default_learns_from_the_bases_own_answers_to_the_same_problems(
        self, ask: Resolve
    ) -> None:
        own, gold = ask(), ask(profile="gold")
        source = own.prepare.source
        assert isinstance(source, SelfSource)
        assert isinstance(gold.prepare.source, HuggingFaceSource)
        assert source.questions == gold.prepare.source
        assert (source.samples, source.temperature, source.top_p) == (4, 0.8, 0.95)
        assert source.instruction == own.eval.instruction, (
            "what the base is told is what it is asked"
        )
        assert not source.train_instruction
        assert own.prepare.base_model == own.train.base_model
        assert gold.prepare.base_model is None
        assert (own.train, own.export, own.eval) == (gold.train, gold.export, gold.eval)

    def test_strong_asks_for_pairs_and_trains_on_them(self, ask: Resolve) -> None:
        spec = ask(profile="strong")
        source = spec.prepare.source
        assert isinstance(source, SelfSource)
        assert source.questions == ask(profile="gold").prepare.source, (
            "a profile adds to the source"
        )
        assert source.pairs
        assert spec.train.preference is not None
        assert spec.prepare.examples > ask().prepare.examples

    @pytest.mark.parametrize("profile", ["default", "gold", "strong"])
    def test_profiles_on_one_base_are_versions_of_one_model(
        self, ask: Resolve, profile: str
    ) -> None:
        spec = ask(profile=profile)
        assert (spec.register_.model_name, spec.place) == ("locollm-math", "")

    def test_a_base_that_thinks_in_words_is_not_cut(self, ask: Resolve) -> None:
        for profile in ("default", "gold", "strong"):
            spec = ask(profile=profile)
            for part in (spec.export, spec.register_, spec.eval):
                assert (part.num_predict, part.num_ctx) == (1024, 2048)
        assert ask(profile="tiny").eval.num_predict == 128

    def test_tiny_needs_no_hub(self, ask: Resolve) -> None:
        spec = ask(profile="tiny")
        assert spec.prepare.source.kind == "arithmetic"
        assert {spec.train.base_model.kind, spec.export.base_model.kind} == {"smollm2-wheel"}
        assert spec.eval.sets["held_out"].source.kind == "arithmetic"
        assert spec.eval.sets["held_out"].count == 100

    def test_two_hundred_problems_of_the_test_split_decide(self, ask: Resolve) -> None:
        sets = ask().eval.sets
        assert sets["held_out"].role is Role.PRIMARY
        assert sets["held_out"].count == 200
        assert sets["held_out"].source.model_dump()["split"] == "test"
        assert sets["benchmark"].role is Role.SHOWN
        assert sets["general"].role is Role.GUARD

    def test_a_stand_in_serves_under_a_name_of_its_own(self, ask: Resolve) -> None:
        real, tiny = ask(), ask(profile="tiny")
        assert (real.register_.model_name, real.place) == ("locollm-math", "")
        assert tiny.register_.model_name == tiny.export.model_name == "locollm-math-tiny"
        assert tiny.place == "served/locollm-math-tiny"
        other = ask(base_model="smollm2-135m-instruct")
        assert other.register_.model_name == "locollm-math-smollm2-135m-instruct"
        assert ask(base_model="qwen3-4b").register_.model_name == "locollm-math"

    def test_survives_a_round_trip_as_json(self, ask: Resolve) -> None:
        for profile in ("default", "gold", "strong", "tiny"):
            spec = ask(profile=profile)
            assert JobSpec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec


class TestOverrides:
    def test_request_goes_over_profile_goes_over_recipe(self, ask: Resolve) -> None:
        spec = ask(profile="tiny", train={"epochs": 7, "lora": {"r": 4}})
        assert spec.train.epochs == 7
        assert spec.train.lora.r == 4
        assert spec.train.lora.alpha == 32, "a nested mapping is merged, not replaced"
        assert spec.train.lora.target_modules == "all-linear"
        assert spec.train.batch_size == 8

    def test_another_kind_of_source_replaces_the_old_one(self, ask: Resolve) -> None:
        spec = ask(prepare={"source": {"kind": "jsonl", "path": "x.jsonl"}})
        assert spec.prepare.source.model_dump() == {"kind": "jsonl", "path": "x.jsonl"}
        spec = ask(profile="gold", prepare={"source": {"split": "test"}})
        assert (spec.prepare.source.kind, spec.prepare.source.split) == ("huggingface", "test")

    def test_source_self_is_changed_field_by_field(self, ask: Resolve) -> None:
        source = ask(prepare={"source": {"samples": 8, "kind": "self"}}).prepare.source
        assert source == ask().prepare.source.model_copy(update={"samples": 8})
        questions = {"kind": "jsonl", "path": "mine.jsonl"}
        source = ask(prepare={"source": {"questions": questions}}).prepare.source
        assert isinstance(source, SelfSource)
        assert source.questions == JsonlSource.model_validate(questions)
        assert source.instruction == ask().eval.instruction

    def test_given_rows_can_become_questions(self, ask: Resolve) -> None:
        own = {"kind": "self", "questions": {"kind": "arithmetic"}, "samples": 2}
        spec = ask(profile="tiny", prepare={"source": own})
        source = spec.prepare.source
        assert isinstance(source, SelfSource)
        assert (source.samples, source.instruction) == (2, None)
        assert spec.prepare.base_model == spec.train.base_model
        assert ask(prepare={"source": {"kind": "arithmetic"}}).prepare.base_model is None

    @pytest.mark.parametrize("profile", ["gold", "tiny"])
    def test_source_self_needs_questions(self, ask: Resolve, profile: str) -> None:
        for source in ({"kind": "self"}, {"kind": "self", "samples": 8, "questions": None}):
            with pytest.raises(InvalidRequest, match="no questions") as caught:
                ask(profile=profile, prepare={"source": source})
            assert caught.value.param == "prepare.source.questions"
            assert "prepare.source.questions" in str(caught.value.hint)

    def test_a_field_of_the_questions_beside_them_is_told_where_it_belongs(
        self, ask: Resolve
    ) -> None:
        with pytest.raises(InvalidRequest, match=r"prepare\.source\.split") as caught:
            ask(prepare={"source": {"split": "test"}})
        assert "`--set prepare.source.questions.split=test`" in str(caught.value.hint)
        assert ask(prepare={"source": {"questions": {"split": "test"}}})

    @pytest.mark.parametrize(
        ("source", "kind", "told"),
        [
            ({"path": "mine.jsonl"}, "jsonl", "{kind: jsonl, path: mine.jsonl}"),
            (
                {"tasks": {"gsm_symbolic": 2.0}, "samples": 3},
                "reasoning-gym",
                "{kind: reasoning-gym, tasks: {gsm_symbolic: 2.0}}",
            ),
        ],
    )
    def test_a_field_of_questions_of_another_kind_is_told_with_the_kind(
        self, ask: Resolve, source: dict[str, Any], kind: str, told: str
    ) -> None:
        with pytest.raises(InvalidRequest) as caught:
            ask(prepare={"source": source})
        setting = f"prepare.source.questions={told}"
        assert f"`--set '{setting}'`" in str(caught.value.hint)
        # what is told works
        questions = parse_assignments([setting])["prepare"]["source"]["questions"]
        own = ask(prepare={"source": {"questions": questions}}).prepare.source
        assert isinstance(own, SelfSource)
        assert own.questions.kind == kind

    def test_rows_with_answers_are_not_sampled(self, ask: Resolve) -> None:
        with pytest.raises(InvalidRequest, match=r"prepare\.source\.samples") as caught:
            ask(profile="gold", prepare={"source": {"samples": 8}})
        assert caught.value.param == "prepare.source.samples"
        assert "self" in str(caught.value.hint)

    def test_one_seed_for_every_stage_that_sets_none(self, ask: Resolve) -> None:
        spec = ask(seed=11, train={"seed": 12})
        assert (spec.seed, spec.prepare.seed, spec.train.seed, spec.eval.seed) == (11, 11, 12, 11)

    def test_register_looks_for_what_export_writes(self, ask: Resolve) -> None:
        spec = ask(export={"quantization": "Q8_0"})
        assert spec.register_.quantization == "Q8_0"

    def test_another_base_model_is_used_throughout(self, ask: Resolve) -> None:
        spec = ask(base_model="smollm2-135m-instruct")
        names = {p.base_model.name for p in (spec.train, spec.export, spec.register_, spec.eval)}
        assert names == {"smollm2-135m-instruct"}

    def test_inputs_are_left_as_they_were(self) -> None:
        base = {"a": {"b": 1}}
        assert merge(base, {"a": {"c": 2}, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}
        assert base == {"a": {"b": 1}}


class TestEvalSets:
    def test_no_row_may_overlap_what_eval_asks(self, ask: Resolve) -> None:
        spec = ask(eval={"sets": {"held_out": {"count": 7}}})
        assert spec.prepare.eval_sets["held_out"].count == 7
        assert set(spec.prepare.eval_sets) == set(spec.eval.sets)
        assert set(spec.eval.sets) == {"benchmark", "held_out", "general"}

    def test_a_role_changes_nothing_of_what_prepare_does(self, ask: Resolve) -> None:
        guarded = ask(eval={"sets": {"benchmark": {"role": "guard", "allowance": 0.1}}})
        assert guarded.prepare == ask().prepare

    def test_null_takes_a_set_out(self, ask: Resolve) -> None:
        assert set(ask(eval={"sets": {"benchmark": None}}).eval.sets) == {"held_out", "general"}
        assert set(ask(profile="tiny").eval.sets) == {"benchmark", "held_out"}

    def test_one_set_decides(self, ask: Resolve) -> None:
        with pytest.raises(InvalidRequest, match="benchmark and held_out") as caught:
            ask(eval={"sets": {"benchmark": {"role": "primary"}}})
        assert caught.value.param == "eval.sets"

    def test_a_generator_has_no_end(self, ask: Resolve) -> None:
        with pytest.raises(InvalidRequest, match="is endless") as caught:
            ask(profile="tiny", eval={"sets": {"held_out": {"count": "all"}}})
        assert caught.value.param == "eval.sets.held_out.count"

    def test_the_sets_of_prepare_are_those_of_eval(self, ask: Resolve) -> None:
        with pytest.raises(InvalidRequest, match=r"eval\.sets"):
            ask(prepare={"eval_sets": {}})


class TestStageLists:
    def test_any_run_without_holes(self, ask: Resolve) -> None:
        assert ask(stages=("train", "export")).stages == (Stage.TRAIN, Stage.EXPORT)

    def test_the_best_adapter_cannot_be_chosen_by_no_rows(self, ask: Resolve) -> None:
        chosen = {"prepare": {"validation": 0}, "train": {"select": "best"}}
        with pytest.raises(InvalidRequest, match=r"prepare\.validation is 0") as caught:
            ask(**chosen)
        assert caught.value.param == "train.select"
        assert ask(**chosen, stages=("export",)).train.select == "best"
        assert ask(train={"select": "best"}).prepare.validation == 32
        assert ask().train.select == "last"

    def test_pairs_that_prepare_makes_none_of_are_refused(self, ask: Resolve) -> None:
        def chosen(pairs: int | None) -> dict[str, Any]:
            questions = {"kind": "arithmetic"}
            own = {"kind": "self", "questions": questions, "pairs": pairs}
            source = questions if pairs is None else own
            return {"prepare": {"source": source}, "train": {"preference": {"beta": 0.2}}}

        for pairs in (None, 0):
            with pytest.raises(InvalidRequest, match="prepare makes none") as caught:
                ask(**chosen(pairs))
            assert caught.value.param == "train.preference"
            assert "prepare.source.pairs" in str(caught.value.hint)
        preference = ask(**chosen(50)).train.preference
        assert preference is not None
        assert (preference.method, preference.beta, preference.batch_size) == ("dpo", 0.2, 16)
        # a profile that sets it needs no edit
        rows = {"kind": "jsonl", "path": "mine.jsonl"}
        with pytest.raises(InvalidRequest, match="prepare makes none") as caught:
            ask(profile="strong", prepare={"source": rows})
        assert "`--set train.preference=null`" in str(caught.value.hint)
        without = parse_assignments(["train.preference=null"])
        assert ask(profile="strong", prepare={"source": rows}, **without).train.preference is None
        # another job's pairs are seen in train
        assert ask(**chosen(None), stages=("train",)).train.preference is not None

    @pytest.mark.parametrize(
        "stages", [("prepare", "export"), ("export", "train"), ("train", "train")]
    )
    def test_holes_and_disorder_are_refused(self, ask: Resolve, stages: tuple[str, ...]) -> None:
        with pytest.raises(StageGap) as caught:
            ask(stages=stages)
        assert caught.value.param == "stages"
        assert "prepare, train, export, register, eval" in str(caught.value.hint)

    def test_none_at_all(self, ask: Resolve) -> None:
        with pytest.raises(InvalidRequest):
            ask(stages=())


class TestRefusals:
    @pytest.mark.parametrize(
        "name",
        ["maths", "", ".", "..", "../math", "math/", "/etc", "MATH", "math\n", "a\0b", "x" * 64],
    )
    def test_unknown_and_hostile_adapters(self, ask: Resolve, name: str) -> None:
        with pytest.raises(UnknownAdapter, match="Adapters here: analysis, code, math") as caught:
            ask(adapter=name)
        assert caught.value.param == "adapter"

    def test_unknown_profile_names_those_there_are(self, ask: Resolve) -> None:
        with pytest.raises(UnknownProfile, match="Profiles: default, gold, strong, tiny"):
            ask(profile="huge")

    def test_unknown_base_model_names_those_there_are(self, ask: Resolve) -> None:
        with pytest.raises(UnknownBaseModel, match="qwen3-4b, qwen3-8b"):
            ask(base_model="gpt")

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"train": {"epochs": -1}}, "train.epochs"),
            ({"train": {"learning_rate": "fast"}}, "train.learning_rate"),
            ({"train": {"lora": {"r": 0}}}, "train.lora.r"),
            ({"train": {"lora": 5}}, "train.lora"),
            ({"train": {"epoch": 1}}, "train.epoch"),
            ({"prepare": {"examples": 0}}, "prepare.examples"),
            ({"prepare": {"source": {"samples": 0}}}, "prepare.source.samples"),
            ({"prepare": {"source": {"sampels": 2}}}, "prepare.source.sampels"),
            ({"prepare": {"source": {"questions": {"kind": "jsonl"}}}}, _QUESTIONS + ".path"),
            ({"prepare": {"source": {"questions": {"kind": "self"}}}}, _QUESTIONS),
            ({"export": {"quantization": "Q2"}}, "export.quantization"),
            ({"register": {"temperature": None}}, "register.temperature"),
            ({"train": {"lora": {"target_modules": "q_proj"}}}, "train.lora.target_modules"),
            ({"train": {"base_model": "gpt"}}, "train.base_model"),
            ({"register": {"model_name": "x"}}, "register.model_name"),
        ],
    )
    def test_the_wrong_field_is_named(
        self, ask: Resolve, fields: dict[str, object], param: str
    ) -> None:
        with pytest.raises(InvalidRequest) as caught:
            ask(**fields)
        assert caught.value.param == param

    @pytest.mark.parametrize(
        "fields",
        [
            {"unknown": 1},
            {"stages": ["bake"]},
            {"seed": -1},
            {"train": {"epochs": float("inf")}},
            {"priority": 101},
            {"metadata": {str(i): "" for i in range(33)}},
        ],
    )
    def test_the_request_itself_is_strict(self, fields: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            JobRequest.model_validate({"adapter": "math", **fields})


class TestRecipeFiles:
    def test_adapters_are_folders_with_a_recipe(self, adapters_dir: Path) -> None:
        (adapters_dir / "empty").mkdir()
        assert adapter_names(adapters_dir) == ["analysis", "code", "math"]

    @pytest.mark.parametrize("text", ["a: [", "- a\n- b\n", "\x00"])
    def test_broken_yaml_is_said(self, adapters_dir: Path, text: str) -> None:
        (adapters_dir / "math" / "adapter.yaml").write_text(text)
        with pytest.raises(InvalidRequest, match=r"adapter\.yaml"):
            load_recipe(adapters_dir, "math")

    def test_the_name_is_the_folders(
        self, adapters_dir: Path, rewrite: Callable[..., None]
    ) -> None:
        rewrite(name="other")
        with pytest.raises(InvalidRequest, match="'other'"):
            load_recipe(adapters_dir, "math")

    @pytest.mark.parametrize(
        "profile",
        [{"trian": {}}, {"train": 5}, {"train": {"epochz": 1}}, {"seed": "x"}, {"base_model": "x"}],
    )
    def test_wrong_profiles_are_said(
        self, ask: Resolve, rewrite: Callable[..., None], profile: dict[str, object]
    ) -> None:
        rewrite(profiles={"mine": profile})
        with pytest.raises(InvalidRequest):
            ask(profile="mine")

    def test_the_field_that_was_meant_is_named(
        self, ask: Resolve, rewrite: Callable[..., None]
    ) -> None:
        for profile, meant in (
            ({"trian": {}}, "train"),
            ({"train": {"lr": 1e-4}}, "train.learning_rate"),
            ({"learning_rate": 1e-4}, "train.learning_rate"),
        ):
            rewrite(profiles={"mine": profile})
            with pytest.raises(InvalidRequest) as caught:
                ask(profile="mine")
            assert f"Did you mean {meant}?" in str(caught.value.hint)
        rewrite(epochs=3)
        with pytest.raises(InvalidRequest) as caught:
            ask()
        assert "Did you mean train.epochs?" in str(caught.value.hint)

    def test_what_reaches_every_stage_is_not_required_of_one(
        self, ask: Resolve, rewrite: Callable[..., None]
    ) -> None:
        rewrite(profiles={"mine": {"eval": {"base_model": {"name": "qwen3-4b"}}}})
        with pytest.raises(
            InvalidRequest, match=r"profiles\.mine\.eval\.base_model cannot be set"
        ) as caught:
            ask(profile="mine")
        assert "at the top of the profile" in str(caught.value.hint)
        rewrite(export={"model_name": "mine"})
        with pytest.raises(InvalidRequest, match=r"export\.model_name cannot be set") as caught:
            ask()
        assert "Set model_name at the top of the recipe" in str(caught.value.hint)

    @pytest.mark.parametrize("entry", ["5", "", "{kind: hub}", "{kind: cloud, train: x}"])
    def test_a_wrong_catalog_names_the_entry(self, adapters_dir: Path, entry: str) -> None:
        (adapters_dir / "base_models.yaml").write_text(f"broken: {entry}\n")
        with pytest.raises(InvalidRequest, match=r"base_models\.yaml: broken"):
            load_catalog(adapters_dir)

    @pytest.mark.parametrize("system", ["", " \n"])
    def test_an_empty_system_prompt_is_refused(self, adapters_dir: Path, system: str) -> None:
        """Training would use it, but Ollama would leave it out."""
        path = adapters_dir / "base_models.yaml"
        entries = yaml.safe_load(path.read_text())
        entries["qwen3-4b"]["system"] = system
        path.write_text(yaml.safe_dump(entries))
        with pytest.raises(InvalidRequest, match="qwen3-4b: system is empty") as caught:
            load_catalog(adapters_dir)
        assert caught.value.param == "system"

    def test_no_catalog_says_where_it_should_be(self, adapters_dir: Path) -> None:
        (adapters_dir / "base_models.yaml").unlink()
        with pytest.raises(InvalidRequest) as caught:
            load_catalog(adapters_dir)
        assert "LOCO_ADAPTERS_DIR" in str(caught.value.hint)


def test_without_sets_of_problems_only_who_asks_for_eval_is_refused(
    ask: Resolve, rewrite: Callable[..., None]
) -> None:
    rewrite(eval={"sets": {}})
    assert ask().stages == tuple(s for s in Stage if s is not Stage.EVAL)
    with pytest.raises(InvalidRequest, match="so eval has no questions"):
        ask(stages=[*Stage])


def test_a_recipe_without_a_source_says_who_brings_the_rows(
    ask: Resolve, rewrite: Callable[..., None], adapters_dir: Path
) -> None:
    rewrite(prepare={}, profiles={})
    with pytest.raises(InvalidRequest, match="has none, so each job must bring") as refused:
        ask()
    assert refused.value.param == "prepare.source"
    assert resolve_recipe(adapters_dir, "math", "default").prepare.source == BROUGHT
