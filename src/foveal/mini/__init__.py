"""The bundled small model, its procedural pictures and questions, and the recipe it was trained with.

model = AutoModelForImageTextToText.from_pretrained(foveal.mini.weights_path())
"""

from __future__ import annotations

from pathlib import Path

from foveal.mini.datasets import EasyQuestions, SceneConversations, SceneQuestions
from foveal.mini.questions import TYPES, Question, ask, ask_all
from foveal.mini.scenes import Scene, make_scene

__all__ = [
    "TYPES",
    "EasyQuestions",
    "Question",
    "Scene",
    "SceneConversations",
    "SceneQuestions",
    "ask",
    "ask_all",
    "make_scene",
    "weights_path",
]


def weights_path() -> Path:
    """The folder of the bundled checkpoint: an ordinary LLaVA checkpoint, with its CLIP pair in ``clip/``."""
    return Path(__file__).parent / "weights"
