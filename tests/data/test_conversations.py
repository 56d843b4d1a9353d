from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from foveal import FovealError
from foveal.data import rows as rows_module
from foveal.data.bad_samples import BadSample
from foveal.data.conversations import load_conversations

LLAVA = {
    "id": "one",
    "image": "cat.jpg",
    "conversations": [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a cat"}],
}
CHAT = {
    "id": 7,
    "images": ["a.png", "b.png"],
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "same?"}],
        },
        {"role": "assistant", "content": "no"},
    ],
}
TEXT_ONLY = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": " hi "}]}


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.json"
    path.write_text(text, "utf-8")
    return path


def good(sample: dict[str, Any] | BadSample) -> dict[str, Any]:
    assert isinstance(sample, dict), sample
    return sample


@pytest.mark.parametrize("start", ["", "\ufeff", "\n "])
@pytest.mark.parametrize("form", ["array", "lines"])
def test_both_forms_and_samples_without_image(tmp_path: Path, form: str, start: str) -> None:
    rows = [LLAVA, CHAT, TEXT_ONLY]
    text = json.dumps(rows, indent=1) if form == "array" else "\n\n".join(map(json.dumps, rows))
    found = load_conversations(write(tmp_path, f"{start}{text}\n"))
    assert len(found) == 3
    llava, chat, plain = map(good, found)
    assert llava == {
        "id": "one",
        "where": f"{tmp_path / 'mine.json'}, sample 1",
        "images": [tmp_path / "cat.jpg"],
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
        ],
    }
    assert chat["id"] == "7"
    assert chat["images"] == [tmp_path / "a.png", tmp_path / "b.png"]
    assert chat["messages"][0]["content"][2] == {"type": "text", "text": "same?"}
    assert plain["images"] == []
    assert plain["messages"][1]["content"] == [{"type": "text", "text": " hi "}]
    assert good(found[-1]) == plain


def test_images_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "else"
    folder.mkdir()
    found = load_conversations(write(tmp_path, json.dumps([LLAVA, {**LLAVA, "image": "/x/y.png"}])), folder)
    assert [good(sample)["images"] for sample in found] == [[folder / "cat.jpg"], [Path("/x/y.png")]]


def test_marks_stay_where_they_stand(tmp_path: Path) -> None:
    turn = {"from": "human", "value": "compare <image> with <image> please"}
    row = {"image": ["a.png", "b.png"], "conversations": [turn, LLAVA["conversations"][1]]}
    content = good(load_conversations(write(tmp_path, json.dumps([row])))[0])["messages"][0]["content"]
    assert [part.get("text", "*") for part in content] == ["compare", "*", "with", "*", "please"]


def test_images_inside_messages_and_a_system_turn(tmp_path: Path) -> None:
    parts = [{"type": "image", "image": "a.png"}, {"type": "image", "path": "b.png"}]
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": parts},
        CHAT["messages"][1],
    ]
    sample = good(load_conversations(write(tmp_path, json.dumps({"messages": messages})))[0])
    assert sample["images"] == [tmp_path / "a.png", tmp_path / "b.png"]
    assert [message["role"] for message in sample["messages"]] == ["system", "user", "assistant"]
    assert sample["messages"][1]["content"] == [{"type": "image"}] * 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (3, "expected an object"),
        ({"image": "a.png"}, "expected an object with `messages`"),
        ({**LLAVA, "image": None}, "0 images, but 1 places"),
        ({**LLAVA, "image": 5}, "an image is a path"),
        ({**TEXT_ONLY, "images": ["a.png"]}, "1 images, but 0 places"),
        ({"messages": ["hello"]}, "a turn is an object"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "a turn needs"),
        ({"messages": [{"role": "user", "content": None}]}, "a turn needs"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "a part of `content` is"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "a part of `content` is",
        ),
        ({"messages": [{"role": "user", "content": "hello"}]}, "no assistant words"),
        ({"messages": [{"role": "assistant", "content": " "}]}, "no assistant words"),
    ],
)
def test_a_bad_sample_is_marked_and_the_others_are_not(tmp_path: Path, row: Any, message: str) -> None:
    found = load_conversations(write(tmp_path, json.dumps([LLAVA, row, CHAT])))
    bad = found[1]
    assert isinstance(bad, BadSample)
    assert message in bad.reason
    assert bad.where == f"{tmp_path / 'mine.json'}, sample 2"
    assert bad.id == ("one" if isinstance(row, dict) and "id" in row else "")
    good(found[0]), good(found[2])
    with pytest.raises(IndexError):
        found[3]


@pytest.mark.parametrize("broken", ['{"id": ', "\u20ac".encode()[:2]])
def test_a_broken_line_is_bad_alone(tmp_path: Path, broken: str | bytes) -> None:
    lines = [json.dumps(LLAVA).encode(), broken.encode() if isinstance(broken, str) else broken]
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\n".join([*lines, json.dumps(CHAT).encode()]))
    first, bad, last = load_conversations(path)
    assert isinstance(bad, BadSample)
    assert "no JSON" in bad.reason
    assert [good(first)["id"], good(last)["id"]] == ["one", "7"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no conversations"),
        ("[]", "no conversations"),
        ("[{", "no JSON behind sample 0"),
        ("[", "no JSON behind sample 0"),
        ('[{"a": 1}, {"b": 2} {"c": 3}]', r"no JSON behind sample 1 \(byte 20: expected a comma"),
        ('[{"a": 1}, {"b": 2}', "no JSON behind sample 1"),
        ("[{}] [{}]", "more behind the end of the array"),
    ],
)
def test_a_bad_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        load_conversations(write(tmp_path, text))
    with pytest.raises(FovealError, match="no such file"):
        load_conversations(tmp_path / "gone.json")


@pytest.mark.parametrize("window", [1, 7, 64, 1000])
def test_arrays_are_read_window_by_window(
    tmp_path: Path, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "_WINDOW", window)
    rows = [{"text": 'ü"]},[{' * size + "\\\u20ac"} for size in range(1500)]
    for gap in (None, 2):
        path = write(tmp_path, json.dumps(rows, ensure_ascii=False, indent=gap))
        assert [rows_module.JsonRows(path)[index] for index in (0, 1, 700, 1499)] == [
            rows[index] for index in (0, 1, 700, 1499)
        ]
    with pytest.raises(FovealError, match="no JSON behind sample 1499"):
        rows_module.JsonRows(write(tmp_path, json.dumps(rows)[:-2]))
    assert len(rows_module.JsonRows(write(tmp_path, "[1, 23, [4], null]"))) == 4


def test_rows_travel_to_other_processes(tmp_path: Path) -> None:
    found = load_conversations(write(tmp_path, json.dumps([{**LLAVA, "id": number} for number in range(9)])))
    assert good(pickle.loads(pickle.dumps(found))[8])["id"] == "8"
    loader: Any = DataLoader(found, batch_size=2, num_workers=2, collate_fn=list)
    assert [sample["id"] for batch in loader for sample in batch] == [str(number) for number in range(9)]


# ---------------------------------------------------------------------- datasets


@pytest.fixture
def chats(tmp_path: Path) -> datasets.Dataset:
    """Two chats with an image column of datasets, the second without image."""
    Image.new("RGB", (6, 4), "red").save(tmp_path / "red.png")
    content = [{"type": "image", "text": None}, {"type": "text", "text": "what is it?"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
    plain = [{"type": "text", "text": "and now?"}]
    return datasets.Dataset.from_dict(
        {
            "id": [1, None],
            "messages": [[{"role": "user", "content": part}, answer] for part in (content, plain)],
            "images": [[str(tmp_path / "red.png")], []],
        }
    ).cast_column("images", datasets.List(datasets.Image()))


def assert_chats(found: Any, where: str) -> None:
    first, second = map(good, found)
    image = first["images"][0]
    assert isinstance(image, Path | bytes)
    assert (first["id"], second["id"]) == ("1", "")
    assert first["where"] == f"{where}, sample 1"
    assert first["messages"][0]["content"] == [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    assert second["images"] == []


def test_a_data_set_of_datasets(chats: datasets.Dataset, tmp_path: Path) -> None:
    assert_chats(load_conversations(chats), "the data set")
    assert_chats(pickle.loads(pickle.dumps(load_conversations(chats))), "the data set")
    assert_chats(load_conversations(chats.with_format("torch")), "the data set")
    chats.save_to_disk(str(tmp_path / "saved"))
    assert_chats(load_conversations(tmp_path / "saved"), str(tmp_path / "saved"))


@pytest.mark.parametrize("folder", [True, False])
def test_parquet(
    chats: datasets.Dataset, tmp_path: Path, folder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "chats.parquet"
    chats.to_parquet(str(path))
    source = path.parent if folder else path
    assert_chats(load_conversations(source), str(source))
    path.write_bytes(b"nonsense")
    with pytest.raises(FovealError, match=r"cannot read .*chats\.parquet as Parquet"):
        load_conversations(source)


def test_paths_in_columns_begin_at_the_image_folder(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list([{"image": "cat.jpg", "conversations": LLAVA["conversations"]}])
    assert good(load_conversations(data, tmp_path)[0])["images"] == [tmp_path / "cat.jpg"]


def test_a_broken_image_is_bad_alone() -> None:
    broken = {"bytes": b"no image", "path": None}
    data = datasets.Dataset.from_dict(
        {"image": [broken], "conversations": [LLAVA["conversations"]]},
    ).cast_column("image", datasets.Image())
    assert good(load_conversations(data)[0])["images"] == [b"no image"]


def test_what_datasets_holds_besides(chats: datasets.Dataset, tmp_path: Path) -> None:
    splits = datasets.DatasetDict({"train": chats, "test": chats})
    with pytest.raises(FovealError, match="several splits, train, test: pass one"):
        load_conversations(splits)
    splits.save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(FovealError, match="several splits, train, test: pass the folder"):
        load_conversations(tmp_path / "splits")
    with pytest.raises(FovealError, match="is a IterableDataset: pass"):
        load_conversations(chats.to_iterable_dataset())
    with pytest.raises(FovealError, match="no column `messages` or `conversations`, only id, images"):
        load_conversations(chats.remove_columns("messages"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FovealError, match="a folder without a data set"):
        load_conversations(tmp_path / "empty")


def test_without_datasets_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(FovealError, match=r'pip install "foveal\[train\]"'):
        load_conversations(tmp_path / "a.parquet")
    assert len(load_conversations(write(tmp_path, json.dumps([LLAVA])))) == 1


def test_a_file_that_is_no_json_at_all_is_refused_whole(tmp_path: Path) -> None:
    for text in (json.dumps({"data": [LLAVA]}, indent=1), "image,question\na.jpg,what?\nb.jpg,where?\n"):
        with pytest.raises(FovealError, match="neither one JSON array nor JSONL"):
            load_conversations(write(tmp_path, text))


def test_a_folder_of_images_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FovealError, match=r"no such folder of images: .*gone"):
        load_conversations(write(tmp_path, json.dumps([LLAVA])), tmp_path / "gone")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**LLAVA, "image": None, "video": "v.mp4"}, "video cannot be trained on"),
        ({**LLAVA, "image": "https://example.com/cat.jpg"}, "is not on this machine: download it"),
    ],
)
def test_what_cannot_be_fetched(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    found = load_conversations(write(tmp_path, json.dumps([row])))[0]
    assert isinstance(found, BadSample)
    assert reason in found.reason
