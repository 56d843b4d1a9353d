from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from foveal.distillation.card import TrainingFacts, model_card
from foveal.distillation.recipe import parse_recipe
from foveal.evaluation import provenance


def card(*words: str, **facts: Any) -> str:
    given: dict[str, Any] = {
        "conversations": 1200,
        "skipped": 0,
        "steps": 50,
        "per_step": "24 conversations",
        "seconds": 61.4,
        "losses": {"sft_loss": 1.25, "kd_loss": 0.5},
        "depth": 32,
        "provenance": provenance(seed=3),
    }
    return model_card("my-llava", parse_recipe(words, {"use_cpu": True}), TrainingFacts(**given | facts))


def front_matter(text: str) -> dict[str, Any]:
    _, head, _ = text.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(head)
    return found


def test_what_the_hub_reads() -> None:
    meta = front_matter(card("--model=llava-hf/llava-1.5-7b-hf", "--method=dart,random"))
    assert (meta["library_name"], meta["pipeline_tag"]) == ("transformers", "image-text-to-text")
    assert (meta["base_model"], meta["base_model_relation"]) == ("llava-hf/llava-1.5-7b-hf", "finetune")
    assert {"foveal", "epic", "dart", "random"} <= set(meta["tags"])


def test_no_folder_of_this_machine_is_named(tmp_path: Path) -> None:
    text = card(
        f"--model={tmp_path}/llava", f"--data={tmp_path}/chats.json", f"--teacher_model={tmp_path}/big"
    )
    assert str(tmp_path) not in text
    assert "base_model" not in front_matter(text)
    for name in ("llava, trained", "chats.json: 1,200 conversations", "teacher (big)"):
        assert name in text


def test_what_was_done() -> None:
    text = card("--data=chats.json", "--divergence=jsd", "--distill_weight_end=0.3", "--keep=1/4", skipped=7)
    for words in (
        "7 of them bad and left out",
        "50, of 24 conversations each",
        "lambda jsd from the teacher (the model itself); lambda 0.7 to 0.3",
        "DART, 25 % of the visual tokens kept from decoder layer 2 on",
        "| sft_loss at the end | 1.2500 |",
        "| 1 | 2 | 10 % to 50 % | 40 % to 80 % |",
        "- seed: 3",
        "licence of the base model",
        'foveal.load("my-llava")',
    ):
        assert words in text, words


def test_no_teacher_no_lambda() -> None:
    text = card("--schedule=direct")
    assert "no teacher" in text
    assert "lambda" not in text


@pytest.mark.parametrize(
    ("words", "learns"),
    [
        ([], "| learns | language model, projector |"),
        (
            ["--lora_rank=8"],
            "language model (LoRA of rank 8, merged; the adapters are in `adapter/`), projector",
        ),
        (["--lora_rank=8", "--dora"], "DoRA of rank 8"),
        (
            ["--train_language_model=false", "--tower_learning_rate=1e-5"],
            "| learns | projector, vision tower |",
        ),
        (["--projector_learning_rate=0"], "| learns | language model |"),
    ],
)
def test_what_learnt(words: list[str], learns: str) -> None:
    assert learns in card(*words)


@pytest.mark.parametrize(
    ("method", "where"), [("visionzip", "before the decoder"), ("pyramiddrop", "inside the decoder")]
)
def test_where_tokens_are_dropped(method: str, where: str) -> None:
    assert f"kept {where}." in card(f"--method={method}")
