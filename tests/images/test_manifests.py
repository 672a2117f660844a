import json
import unicodedata

import pytest

from labeling_pipeline.errors import ConfigurationError
from labeling_pipeline.images.manifests import read_manifest


def read(name: str, text: str | bytes) -> dict[str, str]:
    """Path -> class."""
    table = read_manifest(name, text if isinstance(text, bytes) else text.encode())
    return dict(zip(table["path"].to_pylist(), table["class_name"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("a.csv", "path,class\na/1.jpg,cat\nb.jpg,Big dogs\n", id="CSV"),
        pytest.param("a.CSV", "path,class\r\na/1.jpg,cat\r\nb.jpg,Big dogs", id="Windows"),
        pytest.param("a.csv", "\ufeffpath,class\na/1.jpg,cat\nb.jpg,Big dogs\n", id="a mark first"),
        pytest.param(
            "a.csv", "split,class,path\n1,cat,a/1.jpg\n\n1, Big dogs ,./b.jpg\n", id="more columns"
        ),
        pytest.param(
            "a.csv", "path,class\na/1.jpg,cat\na/1.jpg,cat\nb.jpg,Big dogs\n", id="said twice"
        ),
        pytest.param(
            "a.jsonl",
            '{"path": "a/1.jpg", "class": "cat"}\n\n{"class": "Big dogs", "n": 1, "path": "b.jpg"}',
            id="JSONL",
        ),
    ],
)
def test_a_manifest_is_read(name: str, text: str):
    assert read(name, text) == {"a/1.jpg": "cat", "b.jpg": "Big dogs"}


def test_names_may_hold_anything_a_file_name_may():
    odd = 'line\nbreak, "quoted" \u2028.jpg'
    quoted = odd.replace('"', '""')
    assert read("a.csv", f'path,class\n"{quoted}",cat\n') == {odd: "cat"}
    assert read("a.jsonl", json.dumps({"path": odd, "class": "cat"}, ensure_ascii=False)) == {
        odd: "cat"
    }


def test_letters_are_spelled_in_one_way():
    composed, decomposed = (unicodedata.normalize(form, "Kühe") for form in ("NFC", "NFD"))
    assert read("a.csv", f"path,class\n{decomposed}/1.jpg,{decomposed}\n") == {
        f"{composed}/1.jpg": composed
    }


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "path,class\n", "a.txt: expected a manifest that ends in .csv"),
        ("a.csv", "", "a.csv:1: expected a header with the columns path and class, got nothing"),
        ("a.csv", "file,label\n", "a.csv:1: .*got file,label"),
        ("a.csv", "path,class\na.jpg,cat\nb.jpg\n", "a.csv:3: expected a text as class, got None"),
        ("a.csv", "path,class\n,cat\n", "a.csv:2: expected a text as path, got ''"),
        ("a.csv", 'path,class\na.jpg,"cat\n', "a.csv:2: expected CSV: unexpected end"),
        ("a.csv", "path,class\n/data/a.jpg,cat\n", "a.csv:2: expected a path relative"),
        ("a.csv", "path,class\n../a.jpg,cat\n", "a.csv:2: expected a path relative"),
        (
            "a.csv",
            "path,class\na.jpg,cat\na.jpg,dog\n",
            "a.csv:3: a.jpg belongs to 'dog' here and to 'cat' in line 2",
        ),
        ("a.csv", b"path,class\na.jpg,cat\n\xff.jpg,cat\n", "a.csv:3: expected text in UTF-8"),
        ("a.jsonl", '{"path": "a.jpg", "class": "cat"}\n{', "a.jsonl:2: expected JSON"),
        ("a.jsonl", '["a.jpg", "cat"]', "a.jsonl:1: expected an object"),
        ("a.jsonl", '{"path": "a.jpg"}', "a.jsonl:1: expected a text as class, got None"),
        ("a.jsonl", '{"path": 1, "class": "cat"}', "a.jsonl:1: expected a text as path, got 1"),
    ],
)
def test_a_mistake_is_told_with_its_line(name: str, text: str | bytes, expected: str):
    with pytest.raises(ConfigurationError, match=expected):
        read(name, text)
