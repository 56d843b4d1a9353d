"""The bundled checkpoint: ordinary to load, small, and able to see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPModel

import foveal.mini
from foveal.evaluation import evaluate
from foveal.mini.contrastive import patch_similarity
from foveal.mini.datasets import SceneQuestions
from foveal.mini.learner import normalized
from foveal.mini.scenes import make_scene

WEIGHTS = foveal.mini.weights_path()


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(WEIGHTS).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    return CLIPModel.from_pretrained(WEIGHTS / "clip").eval()


def test_is_stored_in_float16_and_loads_in_float32(model: Any) -> None:
    stored = load_file(WEIGHTS / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert 3e6 < sum(value.numel() for value in model.parameters()) < 5e6


def test_the_whole_package_fits_in_twelve_megabytes() -> None:
    files = [path for path in Path(foveal.mini.__file__).parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if "__pycache__" not in path.parts) <= 12e6
    assert {"atlas.png", "glyphs.png", "LICENSE-ART.md", "model.safetensors"} <= {path.name for path in files}


@pytest.mark.parametrize(
    ("mode", "size"), [("RGB", (96, 96)), ("RGBA", (31, 250)), ("L", (640, 48)), ("P", (7, 7))]
)
def test_takes_images_of_any_size_and_mode(
    model: Any, processor: Any, mode: str, size: tuple[int, int]
) -> None:
    inputs = processor(
        text="USER: <image>\nis there a fox in the image? ASSISTANT:", images=Image.new(mode, size)
    )
    ids = torch.as_tensor(inputs["input_ids"])
    assert (ids == model.config.image_token_id).sum() == 144
    assert np.asarray(inputs["pixel_values"]).shape == (1, 3, 96, 96)


def test_the_processor_sees_what_training_saw(processor: Any) -> None:
    images = [make_scene("test", 0).render(), Image.effect_noise((64, 64), 90).convert("RGB")]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, normalized(images), atol=1e-5, rtol=0)


def test_chat_messages_and_prompts_give_the_same_tokens(processor: Any) -> None:
    image = make_scene("test", 0).render()
    content = [{"type": "image", "image": image}, {"type": "text", "text": "where is the fox?"}]
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    plain = processor(text="USER: <image>\nwhere is the fox? ASSISTANT:", images=image)
    assert np.array_equal(chat["input_ids"], plain["input_ids"])


def test_answers_held_out_questions_and_needs_the_picture(model: Any, processor: Any) -> None:
    samples = list(SceneQuestions("test", 120, seed=1))
    blank = Image.new("RGB", (96, 96), (128, 128, 128))

    def accuracy(asked: list[dict[str, Any]]) -> float:
        return evaluate(model, processor, asked, batch_size=60, max_new_tokens=8).accuracy.value

    seeing, blind = accuracy(samples), accuracy([{**sample, "image": blank} for sample in samples])
    assert seeing > 0.8
    assert blind < 0.5


def test_a_second_turn_can_be_asked(model: Any, processor: Any) -> None:
    right = 0
    for index in range(20):
        scene = make_scene("test", 5000 + index)
        item, *rest = scene.singles() or scene.objects
        other = (rest or [item])[-1]
        prompt = (
            f"USER: <image>\nis there a {other.name} in the image? ASSISTANT: yes</s>"
            f"USER: what is in the {foveal.mini.scenes.CELLS[item.cell]}? ASSISTANT:"
        )
        inputs = processor(text=prompt, images=scene.render(), return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=4, do_sample=False)[
            0, inputs["input_ids"].shape[1] :
        ]
        right += processor.decode(output, skip_special_tokens=True) == item.name
    assert right >= 15


def test_the_clip_towers_vision_weights_are_the_models(model: Any, clip: CLIPModel) -> None:
    tower = model.model.vision_tower.state_dict()
    pair = clip.vision_model.state_dict()
    assert tower.keys() == pair.keys()
    assert all(torch.equal(value, pair[name]) for name, value in tower.items())


def test_texts_find_the_patches_they_name(clip: CLIPModel) -> None:
    processor = AutoProcessor.from_pretrained(WEIGHTS / "clip")
    scenes = [make_scene("test", 9000 + index) for index in range(32)]
    texts = [f"where is the {scene.objects[0].name}?" for scene in scenes]
    inputs = processor(
        text=texts, images=[scene.render() for scene in scenes], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        pooled = clip.text_model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).pooler_output
        text = torch.nn.functional.normalize(clip.text_projection(pooled), dim=-1)
        tower = clip.vision_model(inputs["pixel_values"], output_hidden_states=True)
        cosine = patch_similarity(clip, tower.hidden_states[-2][:, 1:], text)
    best = cosine.argmax(-1)
    hits = [
        scene.patch_labels().kind[patch] == scene.objects[0].kind + 1
        for scene, patch in zip(scenes, best.tolist(), strict=True)
    ]
    assert np.mean(hits) > 0.8


def test_clip_matches_pictures_with_their_captions(clip: CLIPModel) -> None:
    processor = AutoProcessor.from_pretrained(WEIGHTS / "clip")
    scenes = [make_scene("test", 9100 + index) for index in range(32)]
    texts = ["a picture of " + ", ".join(f"a {item.name}" for item in scene.objects) for scene in scenes]
    inputs = processor(
        text=texts, images=[scene.render() for scene in scenes], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = clip(**inputs).logits_per_image
    assert (logits.argmax(-1) == torch.arange(32)).float().mean() > 0.6
