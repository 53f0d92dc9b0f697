"""Files of labelled sentences: their formats, what is refused and where, and batches of ids."""

import csv

import pytest
import torch

from deeprep.data import ByteTokenizer, TextBatches, TextData, load_text


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", 'pos\tIt is good.\nneg\tShe said "no", twice\npos\thé\u2028\n'),
        ("a.csv", 'pos,It is good.\r\nneg,"She said ""no"", twice"\r\npos,hé\u2028\r\n'),
        (
            "a.csv",
            'text,x,Label\nIt is good.,1,pos\n"She said ""no"", twice",2,neg\nhé\u2028,3,pos',
        ),
        ("a.tsv", "\ufeffsentence\tlabel\nIt is good.\tpos\n"),
        (
            "a.JSONL",
            '{"label": "pos", "text": "It is good."}\r\n'
            '{"sentence": "She said \\"no\\", twice", "label": "neg", "x": []}\n'
            '{"label": "pos", "text": "hé\u2028"}',
        ),
    ],
)
def test_formats(write, name, content):
    text = load_text(write(name, content))
    wanted = ["It is good.", 'She said "no", twice', "hé\u2028"][: len(text.sentences)]
    assert list(text.sentences) == wanted
    assert [text.class_names[label] for label in text.labels] == ["pos", "neg", "pos"][
        : len(wanted)
    ]
    assert text.name == name
    assert len(wanted) == (1 if "\ufeff" in content else 3)


def test_numbers_are_classes_in_numerical_order_and_names_in_alphabetical(write):
    numbers = load_text(write("a.csv", "10,a\n2,b\n-1,c\n"))
    assert numbers.class_names == ("-1", "2", "10")
    assert numbers.labels.tolist() == [2, 1, 0]
    mixed = load_text(write("b.jsonl", '{"label": 10, "text": "a"}\n{"label": "b", "text": "a"}\n'))
    assert mixed.class_names == ("10", "b")


def test_one_class_and_a_quoted_line_break(write):
    text = load_text(write("a.csv", 'x,"two\nlines"\nx,one\n'))
    assert text.num_classes == 1
    assert text.sentences == ["two\nlines", "one"]


QUOTED = [
    '"No" he said',
    '"No',
    'he said "No"',
    'an inch (1") or "two"',
    '"',
    '""',
    '"a""b"',
    "'x'",
]


def test_quotation_marks_in_a_tsv_file_are_characters_like_any_other(write):
    rows = "".join(f"{i % 2}\t{sentence}\n" for i, sentence in enumerate(QUOTED))
    assert list(load_text(write("a.tsv", rows)).sentences) == QUOTED
    windows = ("label\ttext\n" + rows).replace("\n", "\r\n")
    assert list(load_text(write("b.tsv", windows)).sentences) == QUOTED
    labels = load_text(write("c.tsv", '"a"\tx\n"a\ty\n'))
    assert labels.class_names == ('"a', '"a"')


def test_a_tsv_file_whose_fields_are_all_quoted_is_refused(write):
    with pytest.raises(ValueError, match=r"a.tsv, line 1: every field is quoted, expected none"):
        load_text(write("a.tsv", '"label"\t"text"\n"0"\t"hello"\n"1"\t"world"\n'))


def test_quotation_marks_in_a_csv_file_are_those_of_the_csv_module(write, tmp_path):
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows((i % 2, sentence) for i, sentence in enumerate(QUOTED))
    assert list(load_text(path).sentences) == QUOTED


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "x\ty\n", r"a.txt, expected one of .tsv, .csv, .jsonl"),
        ("a.csv", "", "a.csv holds no samples"),
        ("a.csv", "label,text\n", "a.csv holds no samples"),
        ("a.jsonl", "", "a.jsonl holds no samples"),
        ("a.csv", "x,a\n\ny,b\n", r"line 2: 0 columns, expected 2 \(label, sentence\)"),
        ("a.csv", "x,a\ny,b,c\n", "line 2: 3 columns, expected 2"),
        ("a.csv", "id,label,text\n1,x\n", r"line 2: 2 columns, expected 3 \(id, label, text\)"),
        ("a.csv", 'x,"a\nb"\ny\n', "line 3: 1 columns"),
        ("a.csv", "x,a\ny, \n", "line 2: the sentence is empty"),
        ("a.tsv", "x\ta\n\tb\n", "line 2: the label is empty"),
        (
            "a.csv",
            'x,a\ny,"open\nz,c\n',
            "line 2: unexpected end of data; in a .csv file a sentence",
        ),
        (
            "a.csv",
            'x,a\ny,"No" he said\n',
            "line 2: ',' expected after '\"'; .* in a .tsv file they mean",
        ),
        ("a.csv", b"x,a\nx,\xff\n", "line 2: not UTF-8"),
        ("a.jsonl", '{"label": 1, "text": "a"}\n\n', "line 2 is not valid JSON: Expecting value"),
        ("a.jsonl", "[" * 10**5, "line 1 is not valid JSON: it is nested too deeply"),
        ("a.jsonl", '{"label": ' + "1" * 5000, "line 1 is not valid JSON: Exceeds the limit"),
        ("a.jsonl", "[1]\n", r"line 1: \[1\], expected an object"),
        ("a.jsonl", '{"label": 1.5, "text": "a"}', "line 1: expected 'label', text or a whole"),
        ("a.jsonl", '{"text": "a", "y": 1}', "the keys are 'text', 'y'"),
        ("a.jsonl", '{"label": 1, "text": ["a"]}', "line 1: expected 'label'"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(write, name, content, message):
    with pytest.raises(ValueError, match=message):
        load_text(write(name, content))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        load_text(tmp_path / "none.csv")


def test_selection_is_that_of_all_data_sets(write):
    path = write("a.csv", "".join(f"{i % 3},s{i}\n" for i in range(12)))
    text = load_text(path, classes=[2, 0], samples_per_class=2, seed=1)
    assert text.class_names == ("2", "0")
    assert torch.bincount(text.labels).tolist() == [2, 2]
    numbers = [int(sentence[1:]) for sentence in text.sentences]
    assert numbers == sorted(numbers)
    assert [(2, 0)[label] for label in text.labels] == [number % 3 for number in numbers]
    with pytest.raises(ValueError, match=r"samples_per_class is .*expected at most 4"):
        load_text(path, samples_per_class=5)


def test_bytes_come_back_and_only_padding_is_masked():
    sentences = ["naïve", "a\0b", "x" * 9]
    tokens = ByteTokenizer()(sentences, max_length=8)
    assert tokens["input_ids"].shape == tokens["attention_mask"].shape == (3, 8)
    assert tokens["input_ids"].max() < ByteTokenizer.vocab_size
    for sentence, ids, mask in zip(sentences, *tokens.values(), strict=True):
        kept = ids[mask.bool()]
        assert bytes((kept - 1).tolist()) == sentence.encode()[:8]
        assert (ids[~mask.bool()] == 0).all()


def text_data(count):
    labels = torch.arange(count) % 2
    return TextData(["ab" * (i + 1) for i in range(count)], labels, ("even", "odd"), "example")


def test_batches_keep_the_order_and_pad_each_to_its_own_length():
    batches = TextBatches(text_data(5), ByteTokenizer(), batch_size=2, max_length=7)
    assert len(batches) == 3
    for _ in range(2):  # it can be run through again
        shapes = [(tuple(x["input_ids"].shape), y.tolist()) for x, y in batches]
        assert shapes == [((2, 4), [0, 1]), ((2, 7), [0, 1]), ((1, 7), [0])]


def test_shuffled_batches_hold_the_same_samples():
    data = text_data(20)
    batches = TextBatches(data, ByteTokenizer(), batch_size=8, max_length=99).shuffled(3)
    rows = [
        (int(mask.sum()), int(label))
        for inputs, labels in batches
        for mask, label in zip(inputs["attention_mask"], labels, strict=True)
    ]
    in_order = [(2 * (i + 1), i % 2) for i in range(20)]
    assert rows != in_order
    assert sorted(rows) == in_order
    again = [labels.tolist() for _, labels in batches.shuffled(3)]
    assert again == [labels.tolist() for _, labels in batches]


def test_a_tokenizer_is_asked_as_those_of_hugging_face_are():
    asked = {}

    def tokenizer(text, **options):
        asked.update(options)
        ids = torch.ones(len(text), 3, dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids * 0}

    ((inputs, _),) = TextBatches(text_data(2), tokenizer, batch_size=2, max_length=3)
    assert asked == {
        "padding": True,
        "truncation": True,
        "max_length": 3,
        "return_tensors": "pt",
    }
    assert set(inputs) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("name", ["batch_size", "max_length"])
def test_batches_of_nothing_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        TextBatches(text_data(2), ByteTokenizer(), **{"batch_size": 1, name: 0})
