"""Running text: documents of a file, and their blocks of tokens."""

from __future__ import annotations

import pytest

from deeprep.data import ByteTokenizer, Documents, TokenBlocks, load_documents


def blocks_of(*texts, batch_size=2, max_length=4):
    return TokenBlocks(Documents(texts, "x"), ByteTokenizer(), batch_size, max_length)


def test_a_text_file_is_one_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    assert load_documents(path).texts == ["one\n\ntwo\n"]
    path.write_text("  \n")
    with pytest.raises(ValueError, match="holds no text"):
        load_documents(path)
    path.write_bytes(b"ok\n\xff")
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        load_documents(path)


def test_labels_of_other_files_are_not_needed(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"label": 3, "text": "two"}\n')
    assert load_documents(tmp_path / "a.jsonl").texts == ["one", "two"]
    (tmp_path / "a.csv").write_text("x,one\ny,two\n")
    assert load_documents(tmp_path / "a.csv").texts == ["one", "two"]
    (tmp_path / "b.jsonl").write_text('{"words": "one"}\n')
    with pytest.raises(ValueError, match="line 1: expected 'text' or 'sentence'"):
        load_documents(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match=r"expected one of \.txt"):
        load_documents(tmp_path / "a.md")


def test_blocks_hold_every_token_that_has_another_beside_it():
    blocks = blocks_of("abcdefghi", "x", "yz")
    batches = list(blocks)
    assert len(blocks) == len(batches) == 2
    # The ninth letter is alone in its block, and "x" in its document.
    assert [b["input_ids"].tolist() for b in batches] == [
        [[98, 99, 100, 101], [102, 103, 104, 105]],
        [[122, 123]],
    ]
    assert all(bool((b["attention_mask"] == 1).all()) for b in batches)
    assert blocks_of("abc", "ab").share(0, 1)[0]["attention_mask"].tolist() == [
        [1, 1, 1],
        [1, 1, 0],
    ]


def test_shares_are_all_of_it():
    blocks = blocks_of("abcdefghijklmnopqrstuvw")
    whole = [row for batch in blocks for row in batch["input_ids"].tolist()]
    for size in (1, 2, 3, 8):
        shares = [blocks.share(rank, size) for rank in range(size)]
        rows = [
            [i for i, m in zip(row, mask, strict=True) if m]
            for share in shares
            for batch in share
            for row, mask in zip(
                batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True
            )
        ]
        assert rows == [[i for i in row if i] for row in whole]


def test_sizes_that_are_none():
    with pytest.raises(ValueError, match="batch_size is 0"):
        blocks_of("abc", batch_size=0)
    with pytest.raises(ValueError, match="max_length is 1, expected >= 2"):
        blocks_of("abc", max_length=1)
    with pytest.raises(ValueError, match="no token after another"):
        blocks_of("a", "b")
