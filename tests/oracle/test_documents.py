"""Files to text and back: what is read, what is refused, and where characters and tokens came from."""

from __future__ import annotations

import io
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lengthwise.documents import Corpus, Document, encode, read_documents
from lengthwise.errors import BadInput, MissingExtra

TRAINING = [
    "the quick brown fox jumps over the lazy dog, and then — naïve as ever — 你好 🙂 it sleeps.  \n\n  return x\n"
] * 4
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


def make_tokenizer(trim):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    if trim:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", model_max_length=8)


TOKENIZERS = [make_tokenizer(trim=False), make_tokenizer(trim=True)]


def written(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def minimal_pdf(content=b"BT /F1 12 Tf 20 100 Td (The code is 4711) Tj ET"):
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Contents 4 0 R "
        b"/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
        b"<< /Length %d >> stream\n%s\nendstream" % (len(content), content),
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    tail = b"trailer << /Size 5 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(out)
    return out + b"xref\n0 5\n0000000000 65535 f \n" + table + tail


@pytest.mark.parametrize("trim", [0, 1])
@settings(max_examples=100, deadline=None)
@given(text=TEXT)
def test_spans_cover_the_text_in_order_and_each_spells_its_token(trim, text):
    tokenizer = TOKENIZERS[trim]
    ids, offsets = encode(text, tokenizer)
    assert ids.dtype == torch.long
    assert ids.shape == (len(offsets),)
    assert tokenizer.decode(ids) == text
    previous = (0, 0)
    for index, (start, end) in zip(ids.tolist(), offsets):
        assert previous[0] <= start <= previous[1] <= end
        assert start < end
        token = tokenizer.backend_tokenizer.decoder.decode([tokenizer.convert_ids_to_tokens(index)])
        assert "\ufffd" in token or token == text[start:end]
        previous = (start, end)
    assert previous[1] == len(text)


def test_pieces_of_one_character_share_its_span():
    _, offsets = encode("a☃b", TOKENIZERS[0])
    assert offsets == [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]


@pytest.mark.parametrize("trim", [0, 1])
def test_special_tokens_in_a_text_are_text_and_the_tokenizer_is_left_as_it_was(trim, capsys, caplog):
    tokenizer = TOKENIZERS[trim]
    before = tokenizer("fox <|end|>").input_ids
    tokenizer.backend_tokenizer.enable_truncation(5)
    state = tokenizer.backend_tokenizer.to_str()
    ids, _ = encode("fox <|end|> " * 50, tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == state
    tokenizer.backend_tokenizer.no_truncation()
    assert tokenizer.eos_token_id in before
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == "fox <|end|> " * 50
    assert tokenizer("fox <|end|>").input_ids == before
    assert "longer than" not in "".join([*capsys.readouterr(), caplog.text])


def test_texts_that_cannot_be_encoded_are_refused():
    with pytest.raises(BadInput, match="lone surrogate at character 1"):
        encode("a\ud800", TOKENIZERS[0])
    with pytest.raises(BadInput, match="fast tokenizer"):
        encode("a", object())


@given(texts=st.lists(TEXT, min_size=1, max_size=4), data=st.data())
def test_locate_gives_back_the_spans_of_the_documents(texts, data):
    corpus = Corpus([Document(f"{i}.txt", text) for i, text in enumerate(texts)])
    start = data.draw(st.integers(0, len(corpus.text)))
    end = data.draw(st.integers(start, len(corpus.text)))
    by_name = {d.name: d.text for d in corpus.documents}
    owner = naive_owners(corpus)
    expected = [owner[i] for i in range(start, end) if owner[i] is not None]
    found = corpus.locate(start, end)
    assert [(name, i) for name, low, high in found for i in range(low, high)] == expected
    assert "".join(by_name[name][low:high] for name, low, high in found) == "".join(by_name[n][i] for n, i in expected)
    if len(texts) == 1:
        assert corpus.text[start:end] == texts[0][start:end]


def naive_owners(corpus):
    """For every character of the corpus the (document, character) it is, or None in a header, by building it again."""
    owner = []
    for index, document in enumerate(corpus.documents):
        if len(corpus.documents) > 1:
            owner += [None] * len(("\n\n" if index else "") + f"# {document.name}\n\n")
        owner += [(document.name, i) for i in range(len(document.text))]
    assert len(owner) == len(corpus.text)
    return owner


def test_locate_refuses_spans_outside_and_no_documents():
    corpus = Corpus([Document("a", "abc")])
    for span in [(-1, 2), (2, 1), (0, 4)]:
        with pytest.raises(BadInput, match="outside"):
            corpus.locate(*span)
    with pytest.raises(BadInput, match="no document"):
        Corpus([])


@pytest.mark.parametrize(
    "data",
    ["naïve\r\ntext\r", "naïve\ntext\n".encode("utf-8-sig"), "naïve\ntext\n".encode("utf-16")],
    ids=["crlf", "utf-8-bom", "utf-16-bom"],
)
def test_text_marks_and_newlines(tmp_path, data):
    path = written(tmp_path, "a.md", data)
    assert read_documents([path]) == [Document(path, "naïve\ntext\n")]


def test_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO("héllo".encode())))
    assert read_documents(["-"]) == [Document("stdin", "héllo")]
    with pytest.raises(BadInput, match="only once"):
        read_documents(["-", "-"])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b" \n\t", "a.txt is empty"),
        ("a.txt", b"ab\xffcd", "not UTF-8: byte 0xff at offset 2; convert"),
        ("a.txt", b"ab\0cd", "binary file (a zero byte at offset 2)"),
        ("a.html", b"<script>x</script>", "holds no text"),
        ("a.html", b"<meta charset=klingon>x", "unknown character set 'klingon'"),
        ("a.pdf", b"%PDF-1.4 torn", "cannot be read as a PDF"),
        ("a.pdf", b"no pdf at all", "cannot be read as a PDF"),
        ("a.pdf", minimal_pdf(b""), "holds no text in its 1 pages"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path, name, data, message):
    with pytest.raises(BadInput) as caught:
        read_documents([written(tmp_path, name, data)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_directories(tmp_path):
    with pytest.raises(BadInput, match="there is no file"):
        read_documents([str(tmp_path / "none.txt")])
    with pytest.raises(BadInput, match="is a directory"):
        read_documents([str(tmp_path)])
    with pytest.raises(BadInput, match="cannot be read"):
        read_documents(["a\0b"])


def test_html_to_what_a_reader_sees(tmp_path):
    page = """<!doctype html><html><head><title>A &amp; B</title><style>p {}</style>
    <script>if (a < b) {}</script></head>
    <body><h1>Head</h1><p>One   <b>bold</b>,\n two&nbsp;&eacute;.</p><ul><li>first<li>second</ul>
    <pre>  keep\n    this</pre><table><tr><td>a<td>b</tr><tr><td>c</tr></table>
    x<br>y<br/>z<noscript>no</noscript></body>"""
    text = read_documents([written(tmp_path, "a.html", page)])[0].text
    assert text == (
        "A & B\n\nHead\n\nOne bold, two\xa0é.\n\nfirst\nsecond\n\n  keep\n    this\n\na b\n\nc\n\nx\ny\nz\n"
    )
    latin = written(tmp_path, "b.htm", '<meta charset="iso-8859-1"><p>é</p>'.encode("latin-1"))
    assert read_documents([latin])[0].text == "é\n"


def test_pdf(tmp_path, monkeypatch):
    pypdf = pytest.importorskip("pypdf")
    path = written(tmp_path, "a.pdf", minimal_pdf())
    assert read_documents([path])[0].text == "The code is 4711"
    writer = pypdf.PdfWriter(clone_from=path)
    writer.encrypt("secret", algorithm="RC4-128")
    locked = tmp_path / "locked.pdf"
    writer.write(locked)
    with pytest.raises(BadInput, match="is encrypted"):
        read_documents([str(locked)])
    monkeypatch.setitem(__import__("sys").modules, "pypdf", None)
    with pytest.raises(MissingExtra, match=r"lengthwise\[pdf\]"):
        read_documents([path])
