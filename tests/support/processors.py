"""Processors of the real classes with the real templates, built small: bytes for tokens, tiny pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Gemma3Processor,
    Idefics3Processor,
    InternVLProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}"
    "{%- if messages[0]['content'] is string -%}{%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}"
    "{%- else -%}{%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}{%- endif -%}"
    "{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set first_user_prefix = '' -%}"
    "{%- set loop_messages = messages -%}{%- endif -%}{%- for message in loop_messages -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}"
    "{%- if (message['role'] == 'assistant') -%}{%- set role = 'model' -%}{%- else -%}"
    "{%- set role = message['role'] -%}{%- endif -%}"
    "{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '') }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}"
    "{%- elif message['content'] is iterable -%}{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}{%- elif item['type'] == 'text' -%}"
    "{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}{%- else -%}"
    "{{ raise_exception('Invalid content type') }}{%- endif -%}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
IDEFICS = (
    "<|begin_of_text|>{% for message in messages %}{{message['role'].capitalize()}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
INTERNVL = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
# Mistral's: the system's words move into the last user turn, and nothing announces the assistant.
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'][0]['text'] %}"
    "{%- set rest = messages[1:] %}{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}"
    "{%- for message in rest %}{%- if message['role'] == 'user' %}{{- '[INST]' }}"
    "{%- if loop.last or loop.nextitem is not defined or loop.revindex == 2 %}"
    "{%- if system is defined %}{{- system + '\n\n' }}{%- endif %}{%- endif %}"
    "{%- for part in message['content'] %}{%- if part['type'] == 'text' %}{{- part['text'] }}"
    "{%- else %}{{- '<image>' }}{%- endif %}{%- endfor %}{{- '[/INST]' }}"
    "{%- else %}{{- ' ' + message['content'][0]['text'] | trim + '</s>' }}{%- endif %}{%- endfor %}"
)


class WithoutVideo:
    """Video processors need torchvision, which is not there: let a processor have none."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor" and argument is None:
            return None
        return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]


class Qwen(WithoutVideo, Qwen2_5_VLProcessor):
    """Qwen2.5-VL's, for pictures."""


class InternVL(WithoutVideo, InternVLProcessor):
    """InternVL's, for pictures."""


def tokenizer(special: list[str], side: str = "left", bos: str = "<s>", **named: str) -> Any:
    """Bytes, with runs of newlines merged as Gemma's tokenizer does; `named` are tokens with an attribute each."""
    alphabet = sorted(ByteLevel.alphabet())
    runs = ["Ċ" * count for count in range(2, 7)]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *runs])}
    merges = [("Ċ" * left, "Ċ") for left in range(1, 6)]
    core = Tokenizer(models.BPE(vocabulary, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token in [bos, "</s>", "<pad>", *special, *named.values()]
        ]
    )
    core.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token="</s>",
        pad_token="<pad>",
        padding_side=side,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=named,
    )


def llava(side: str = "left", template: str = LLAVA) -> Any:
    """9 visual tokens an image."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12}
        ),
        tokenizer=tokenizer(["[INST]", "[/INST]"], side, image_token="<image>"),
        patch_size=4,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )


def qwen(side: str = "left") -> Any:
    """As many visual tokens as the picture's size asks for."""
    names = [
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ]
    return Qwen(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
        ),
        tokenizer=tokenizer(names, side),
        chat_template=QWEN,
    )


def gemma(side: str = "left") -> Any:
    """Blank lines and delimiters around 4 visual tokens."""
    return Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 8, "width": 8}),
        tokenizer=tokenizer(
            ["<start_of_turn>", "<end_of_turn>"],
            side,
            bos="<bos>",
            image_token="<image_soft_token>",
            boi_token="<start_of_image>",
            eoi_token="<end_of_image>",
        ),
        chat_template=GEMMA,
        image_seq_length=4,
    )


def idefics(side: str = "left") -> Any:
    """Tiles, each with a name, and the whole picture."""
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    return Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(
            size={"longest_edge": 24}, max_image_size={"longest_edge": 8}
        ),
        tokenizer=tokenizer(
            ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles],
            side,
            bos="<|begin_of_text|>",
        ),
        image_seq_len=3,
        chat_template=IDEFICS,
    )


def internvl(side: str = "left") -> Any:
    """Tiles without names between two delimiters."""
    return InternVL(
        image_processor=GotOcr2ImageProcessorPil(
            size={"height": 8, "width": 8}, crop_to_patches=True, max_patches=4
        ),
        tokenizer=tokenizer(
            ["<|im_start|>", "<|im_end|>"],
            side,
            start_image_token="<img>",
            end_image_token="</img>",
            context_image_token="<IMG_CONTEXT>",
            video_token="<video>",
        ),
        image_seq_length=4,
        chat_template=INTERNVL,
    )


BUILDERS: dict[str, Callable[..., Any]] = {
    "llava": llava,
    "qwen": qwen,
    "gemma": gemma,
    "idefics": idefics,
    "internvl": internvl,
}


@cache
def processor(name: str, side: str = "left") -> Any:
    """One of `BUILDERS`' processors."""
    return BUILDERS[name](side)
