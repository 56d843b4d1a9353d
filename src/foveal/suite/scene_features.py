"""The columns of the ten benchmarks' files, as the hub's repositories have them."""

from __future__ import annotations

from typing import Any

from foveal.suite.benchmarks import Benchmark

__all__ = ["features"]


def features(benchmark: Benchmark, config: str) -> Any:
    """The columns of a benchmark's table, with their types.

    Args:
        benchmark: one of EPIC's ten.
        config: its configuration, where it has more than one.

    Returns:
        A `datasets.Features`.
    """
    from datasets import Features, Image, List, Value

    text, integer = Value("string"), Value("int64")
    texts, picture = List(text), Image()
    if benchmark.images and config == benchmark.images:
        return Features({"id": text, "image": picture})
    columns: dict[str, dict[str, Any]] = {
        "vqav2": {
            "question_type": text,
            "multiple_choice_answer": text,
            "answers": List({"answer": text, "answer_confidence": text, "answer_id": integer}),
            "image_id": integer,
            "answer_type": text,
            "question_id": integer,
            "question": text,
            "image": picture,
        },
        "gqa": {
            "id": text,
            "imageId": text,
            "question": text,
            "answer": text,
            "fullAnswer": text,
            "isBalanced": Value("bool"),
            "groups": {"global": text, "local": text},
            "entailed": text,
            "equivalent": text,
            "types": {"structural": text, "semantic": text, "detailed": text},
            "semanticStr": text,
        },
        "vizwiz": {
            "question_id": text,
            "image": picture,
            "question": text,
            "answers": texts,
            "category": text,
        },
        "sqa_img": {
            "image": picture,
            "question": text,
            "choices": texts,
            "answer": Value("int8"),
            **dict.fromkeys(
                ("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution"),
                text,
            ),
        },
        "textvqa": {
            "image_id": text,
            "question_id": Value("int32"),
            "question": text,
            "question_tokens": texts,
            "image": picture,
            "image_width": Value("int32"),
            "image_height": Value("int32"),
            "flickr_original_url": text,
            "flickr_300k_url": text,
            "answers": texts,
            "image_classes": texts,
            "set_name": text,
            "ocr_tokens": texts,
        },
        "pope": {
            **dict.fromkeys(("id", "question_id", "question", "answer", "image_source"), text),
            "image": picture,
            "category": text,
        },
        "mme": {
            "question_id": text,
            "image": picture,
            **dict.fromkeys(("question", "answer", "category"), text),
        },
        "mmbench": {
            "index": integer,
            **dict.fromkeys(("question", "hint", "answer", *"ABCD", "category"), text),
            "image": picture,
            **dict.fromkeys(("source", "L2-category", "comment", "split"), text),
        },
        "ocrbench": {
            **dict.fromkeys(("dataset", "question", "question_type"), text),
            "answer": texts,
            "image": picture,
        },
    }
    return Features(columns["mmbench" if benchmark.column == "mmbench_cn" else benchmark.column])
