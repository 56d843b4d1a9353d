from __future__ import annotations

from pathlib import Path

import pytest
from transformers import TrainingArguments

from foveal import FovealError
from foveal.distillation import EpicConfig
from foveal.distillation.recipe import RunOptions, bundled_recipes, parse_recipe

CPU = {"use_cpu": True}


def recipe_file(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_words_go_before_the_recipe_and_that_before_the_defaults(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "layer: 1\nkeep: 1/4\nweight_decay: 2e-1\nmodel: my-llava\n")
    found = parse_recipe(
        [path, "--layer", "3", "--learning-rate=1e-3"], {**CPU, "weight_decay": 0.5, "seed": 7}
    )
    config = found.config
    assert (config.layer, config.keep, config.weight_decay, config.seed) == (3, 0.25, 0.2, 7)
    assert config.learning_rate == 1e-3
    assert (found.run.model, found.config.max_length) == ("my-llava", 2048)
    assert set(found.given) == {"layer", "keep", "weight_decay", "model", "learning_rate"}


def test_a_recipe_written_down_is_the_same_recipe(tmp_path: Path) -> None:
    words = [
        "--keep=1/9",
        "--bf16",
        "false",
        "--report_to",
        "none",
        "--method=dart,random",
        "--global_batch=32",
    ]
    first = parse_recipe(words, CPU)
    again = parse_recipe([recipe_file(tmp_path, first.text())], CPU)
    assert again.given == first.given
    assert (again.run, again.config.methods) == (first.run, ["dart", "random"])


@pytest.mark.parametrize(
    "field", ["weight_decay", "max_steps", "dora", "method", "lr_scheduler_type", "output_dir"]
)
def test_both_spellings_of_an_option(field: str) -> None:
    value = {"max_steps": "3", "weight_decay": "0.5", "dora": "true"}.get(
        field, "linear" if "lr" in field else "dart"
    )
    plain, dashed = (
        parse_recipe([f"--{name}={value}", "--lora_rank=8"], CPU) for name in (field, field.replace("_", "-"))
    )
    assert plain.given == dashed.given
    assert field in plain.given


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learnin_rate", "1"], "there is no option --learnin_rate: did you mean --learning_rate?"),
        (["--layer", "two"], "--layer: invalid int value: 'two'"),
        (["--bf16", "perhaps"], "--bf16/--bf16: Truthy value expected|--bf16: Truthy value expected"),
        (["--layer", "1", "2", "3"], "'3' follows no option"),
        (["nothing-such"], "no recipe 'nothing-such': name a YAML file, or one of bundled"),
        (["gone.yaml"], "no such file: gone.yaml"),
        (["--schedule", "tdc"], "unknown schedule 'tdc'"),
        (["--lr_scheduler_type", "cosin"], "do not go together: .*cosin"),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
        (["--max_length", "0"], "max_length=0 must be at least 1"),
        (["--global_batch", "100"], "global_batch=100 cannot be made of batches of 8 on 1 processes"),
        (["--output_dir"], "--output_dir/--output-dir: expected one argument"),
    ],
)
def test_what_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(FovealError, match=message):
        parse_recipe(words, CPU)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layr: 2", "mine.yaml: there is no option --layr: did you mean --layer?"),
        ("layer: deep", "mine.yaml: --layer: invalid int value: 'deep'"),
        ("- a\n- b", "a recipe is a flat list"),
        ("a: [", "no YAML"),
    ],
)
def test_a_recipe_that_is_refused_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        parse_recipe([recipe_file(tmp_path, text)], CPU)


def test_values_of_every_kind(tmp_path: Path) -> None:
    text = "label_names: [a, b]\ndora: false\neval_steps: null\nlr_scheduler_kwargs: {num_cycles: 2}\n"
    found = parse_recipe([recipe_file(tmp_path, text)], CPU).config
    assert (found.label_names, found.dora) == (["a", "b"], False)
    assert found.lr_scheduler_kwargs == {"num_cycles": 2}


def test_the_global_batch_is_kept_by_accumulation() -> None:
    found = parse_recipe(["--global_batch=128", "--per_device_train_batch_size=2"], CPU)
    assert found.config.gradient_accumulation_steps == 64
    assert RunOptions(global_batch=128).accumulation(batch_size=16, processes=8) == 1
    assert RunOptions().accumulation(batch_size=16, processes=8) is None


def test_no_option_of_the_run_hides_one_of_the_trainer() -> None:
    assert not set(RunOptions.__annotations__) & set(EpicConfig.__dataclass_fields__)


@pytest.mark.parametrize("name", bundled_recipes())
def test_bundled_recipes_are_good(name: str) -> None:
    found = parse_recipe([name], CPU)
    assert bundled_recipes()[name][0] != "#"
    if name.startswith("llava"):
        assert found.run.global_batch == 128
        assert found.run.accumulation(found.config.per_device_train_batch_size, found.run.processes or 1)


def test_the_papers_recipe() -> None:
    """arXiv 2510.00515, section 4: LLaVA-1.5's stage 2 but for the schedule."""
    config = parse_recipe(["llava-1.5-7b"], CPU).config
    assert (config.learning_rate, config.weight_decay, config.num_train_epochs) == (2e-5, 0, 1)
    assert (config.lr_scheduler_type, config.warmup_steps) == ("cosine", 0.03)
    assert (config.method, config.layer, config.weight(0.5), config.bf16) == ("dart", 2, 0.7, True)
    assert config.gradient_checkpointing
    assert isinstance(config, TrainingArguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_dir: /my pictures/x", "no option --image_dir"),
        ("lora: {a: 1}", "no option --lora"),
        ("batch_size: 2", "no option --batch_size here: write --per_device_train_batch_size"),
        ("dtype: float16\nbf16: true", "float16 and bf16 do not go together"),
        ("dora: true", "pass lora_rank, too"),
    ],
)
def test_what_a_recipe_cannot_say(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        parse_recipe([recipe_file(tmp_path, text)], CPU)


def test_the_best_model_is_saved_as_often_as_it_is_looked_for() -> None:
    words = ["--load_best_model_at_end=true", "--eval_strategy=steps", "--eval_steps=7"]
    config = parse_recipe(words, {**CPU, "save_steps": 100}).config
    assert (config.save_strategy, config.save_steps) == ("steps", 7)
    assert parse_recipe([*words, "--save_steps=14"], CPU).config.save_steps == 14
