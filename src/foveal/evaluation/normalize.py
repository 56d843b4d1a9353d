"""How answers are brought into one form before they are compared.

`normalize` is mild and knows every script; `normalize_vqa` and `normalize_vqav2` are the rules that the VQA benchmarks
are scored with, quirks included, so that scores can be set beside published ones.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["normalize", "normalize_vqa", "normalize_vqav2"]


def normalize(text: str) -> str:
    """Case, width, spacing and surrounding punctuation removed: `" The Cat. "` gives `"the cat"`."""
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    start, end = 0, len(words)
    while start < end and _is_border(words[start]):
        start += 1
    while end > start and _is_border(words[end - 1]):
        end -= 1
    return words[start:end]


def _is_border(character: str) -> bool:
    return character.isspace() or unicodedata.category(character).startswith("P")


def normalize_vqa(text: str) -> str:
    """The answer normalisation of TextVQA and VizWiz: `"Two dogs, the end."` gives `"2 dogs end"`.

    In order: lower case, commas and question marks removed, `'s` split off, other punctuation removed or turned into
    spaces, full stops removed unless a digit follows, number words up to ten turned into digits, articles removed,
    apostrophes restored.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return _plain_words(_strip_punctuation(_one_line(text)))


def normalize_vqav2(text: str) -> str:
    """VQAv2's own: as `normalize_vqa`, but `'s` stays, and commas and question marks are marks like all others."""
    return _plain_words(_strip_punctuation(_one_line(text)))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _strip_punctuation(text: str) -> str:
    result = text
    thousands = _THOUSANDS.search(text) is not None
    for mark in _PUNCTUATION:
        # The rule looks at the untouched text: a mark that stands beside a space anywhere is deleted everywhere.
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or thousands else " ")
    return _FULL_STOP.sub("", result, count=_FULL_STOPS)


def _plain_words(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"(?<=\d),+(?=\d)")
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS = 32  # the official code passes a flag where the number of replacements belongs
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    "none": "0",
    **{
        word: str(value)
        for value, word in enumerate("zero one two three four five six seven eight nine ten".split())
    },
}
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# Each word with any one of its apostrophes forgotten; "somebody'd" loses its own, as in the official table.
_CONTRACTIONS = {"somebody'd": "somebodyd"} | {
    word[:position] + word[position + 1 :]: word
    for word in _CONTRACTED.split()
    for position, character in enumerate(word)
    if character == "'"
}
