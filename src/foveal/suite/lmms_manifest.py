"""What lmms-eval finds under the entry point `lmms_eval.models`; apart, since it looks while it is being imported."""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest

__all__ = ["manifest"]

manifest = ModelManifest(model_id="foveal", chat_class_path="foveal.suite.lmms.FovealModel")
