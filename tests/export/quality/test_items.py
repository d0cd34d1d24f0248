"""Reading and checking `items.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tokenfold.export.quality.items import Line, read_items
from tokenfold.export.quality.photos import DataError, Photos


def photos(folder: Path, *lines: Any) -> Photos:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    if lines:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (folder / "items.jsonl").write_text("\n".join(texts))
    return Photos(folder, ())


def test_lines_of_other_tasks_are_left_out(tmp_path: Path) -> None:
    lines = [
        {"task": "retrieve", "images": ["b.png"], "text": "a dog", "things": 4},
        "",
        {"task": "vqa", "images": ["a.png"], "text": "what?", "answer": "a cat"},
    ]
    source = photos(tmp_path, *lines)
    location = f"{tmp_path}: items.jsonl, line"
    retrieve = Line(f"{location} 1", "retrieve", (1,), "a dog", None)
    question = Line(f"{location} 3", "vqa", (0,), "what?", "a cat")
    assert read_items(source, {"retrieve": 1}) == [retrieve]
    assert read_items(source, {"vqa": 1, "retrieve": 1}) == [retrieve, question]
    assert read_items(source, {"reason": 2}) == []


def test_without_the_file_there_are_no_items(tmp_path: Path) -> None:
    assert read_items(photos(tmp_path), {"retrieve": 1}) is None


@pytest.mark.parametrize(
    ("wrong_line", "message"),
    [
        ("[", "line 2"),
        ({"task": "find", "images": ["a.png"], "text": "x"}, "line 2"),
        ({"task": "retrieve", "images": ["c.png"], "text": "x"}, r"line 2: c\.png is missing"),
        ({"task": "retrieve", "images": [], "text": "x"}, r"retrieve needs 1 image\(s\), not 0"),
        ({"task": "retrieve", "images": ["a.png"], "text": " "}, "the text is empty"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, wrong_line: Any, message: str) -> None:
    source = photos(tmp_path, {"task": "retrieve", "images": ["a.png"], "text": "x"}, wrong_line)
    with pytest.raises(DataError, match=message):
        read_items(source, {"retrieve": 1})
