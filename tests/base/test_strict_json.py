"""JSON that every reader takes, and errors that say where text is none."""

import json
import math

import pytest

from deeprep.base import strict_json


def test_what_strict_json_lacks_comes_back(tmp_path):
    value = {"C": [math.inf, -math.inf, 1.5], "name": "x", "none": None, "deep": {"n": 3}}
    path = tmp_path / "a.json"
    strict_json.write(path, value)
    json.loads(path.read_text(), parse_constant=pytest.fail)
    assert strict_json.decode(strict_json.read(path)) == value
    assert math.isnan(strict_json.decode(strict_json.encode((math.nan,)))[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value, line 1 column 1"),
        (b'{"a": 1', "Expecting ',' delimiter, line 1 column 8"),
        (b'{"a": 1}\n}', "Extra data, line 2 column 1"),
        (b"\xff\xfe\x00", ".*codec can't decode"),
        (b"[" * 10**5, "it is nested too deeply"),
        (b"1" * 5000, "Exceeds the limit"),
    ],
)
def test_what_is_no_json_is_named(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} is not valid JSON: {message}"):
        strict_json.read(path)


def test_no_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        strict_json.read(tmp_path / "none.json")


def test_keys_become_text_and_their_order_is_kept_unless_sorted():
    assert strict_json.dumps({2: 1, "a": (1,)}) == '{"2": 1, "a": [1]}'
    assert strict_json.dumps({"b": 1, "a": 2}, sort_keys=True) == '{"a": 2, "b": 1}'
