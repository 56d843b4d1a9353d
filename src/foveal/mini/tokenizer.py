"""A hand-made WordPiece tokenizer: whole words where the questions need them, letters for everything else."""

from __future__ import annotations

import string

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from foveal.mini.vocabulary import CHINESE, WORDS

__all__ = ["CHAT_TEMPLATE", "IMAGE_TOKEN", "build_tokenizer"]

IMAGE_TOKEN = "<image>"
_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", IMAGE_TOKEN, "USER:", "ASSISTANT:")
_OPTIONS = ("A", "B", "C", "D")
_PUNCTUATION_CN = "，。？！：；、"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '</s>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + ' ' }}{% endif %}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{% generation %}{{ part['text'] + '</s>' }}{% endgeneration %}{% endfor %}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def _tokens() -> list[str]:
    pieces = string.ascii_lowercase + string.digits + string.punctuation
    alone = [*pieces, *WORDS, *CHINESE, *_PUNCTUATION_CN]
    inside = ["##" + letter for letter in string.ascii_lowercase + string.digits]
    return list(dict.fromkeys([*_SPECIAL, *alone, *inside]))


def build_tokenizer(closing: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer, padding on the left, with LLaVA 1.5's chat format.

    Args:
        closing: also put ``</s>`` after every text, as the contrastive text tower needs it; pads on the right.
    """
    vocabulary = {token: index for index, token in enumerate(_tokens())}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", max_input_chars_per_word=200))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if closing else "<s> $A",
        special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])],
    )
    # As tokens of their own the options' letters survive lower-casing, and "A" is not the article.
    core.add_tokens([AddedToken(letter, single_word=True, normalized=False) for letter in _OPTIONS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=[IMAGE_TOKEN, "USER:", "ASSISTANT:"],
        padding_side="right" if closing else "left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.image_token = IMAGE_TOKEN
    tokenizer.chat_template = None if closing else CHAT_TEMPLATE
    return tokenizer
