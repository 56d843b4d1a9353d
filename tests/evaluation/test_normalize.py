import pytest

from foveal.evaluation import normalize, normalize_vqa
from foveal.evaluation.normalize import normalize_vqav2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The   CAT. ", "the cat"),
        ("“Cat”", "cat"),
        ("ＡＢＣ", "abc"),
        ("左上。", "左上"),
        ("top-left", "top-left"),
        ("3.5", "3.5"),
        ("?!", ""),
        ("", ""),
        ("Straße", "strasse"),
    ],
)
def test_normalize(text: str, expected: str) -> None:
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two dogs.", "2 dogs"),
        ("none", "0"),
        ("the cat and a dog", "cat and dog"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("'ows'at", "'ow's'at"),
        ("ow's'at", "ow 's'at"),  # the official rule splits 's off first
        ("somebody'd", "somebodyd"),
        ("yall", "y'all"),
        ("y'alld've", "y'all'd've"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("U.S.A", "usa"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("yes!", "yes"),
        ("t-shirt", "t shirt"),
        ("t-shirt - blue", "tshirt blue"),  # one mark beside a space deletes that mark everywhere
        ("man's hat", "man 's hat"),
        ("first\nline\tend", "first line end"),
        ("A", ""),
        ("", ""),
    ],
)
def test_normalize_vqa(text: str, expected: str) -> None:
    assert normalize_vqa(text) == expected


@pytest.mark.parametrize("word", ["wed", "hell", "shell", "ill", "its", "were", "well"])
def test_words_that_only_look_like_contractions_stay(word: str) -> None:
    assert normalize_vqa(word) == word


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The man's hat", "man's hat"),
        ("yes, sir", "yes sir"),
        ("yes,sir", "yes sir"),
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),  # a comma between digits deletes every mark
        ("who?", "who"),
        ("Two\tdogs.\n", "2 dogs"),
    ],
)
def test_normalize_vqav2(text: str, expected: str) -> None:
    assert normalize_vqav2(text) == expected


def test_no_more_than_32_full_stops_are_removed() -> None:
    assert normalize_vqa("." * 40) == normalize_vqav2("." * 40) == "." * 8
