"""Files to text, text to one corpus, and positions in the corpus back to files."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lengthwise.errors import BadInput, MissingExtra

if TYPE_CHECKING:
    import torch

STDIN = "-"
HTML = frozenset({".html", ".htm", ".xhtml"})
BLOCK_TAGS = (
    "address article aside blockquote body dd div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 "
    "header hr html main nav ol p pre section table title ul"
)
BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


@dataclass(frozen=True)
class Document:
    """One text that was read. `name` is its path as given, or 'stdin'; newlines in `text` are '\\n'."""

    name: str
    text: str


class Corpus:
    """Documents joined into the one text that a model reads.

    `text` is the text of the only document, or every document behind a line `# name`. `parts` are the pieces of it
    that belong to the documents. `apart`: a blank line ends the last one too, so that no part depends on its place.
    Raises BadInput without documents.
    """

    def __init__(self, documents: Sequence[Document], *, apart: bool = False) -> None:
        if not documents:
            raise BadInput("there is no document to read")
        self.documents = tuple(documents)
        self._starts: list[int] = []
        self.parts: list[str] = []
        length = 0
        for document in self.documents:
            header = "" if len(self.documents) == 1 else f"# {document.name}\n\n"
            end = "\n\n" if apart or len(self.parts) < len(self.documents) - 1 else ""
            self._starts.append(length + len(header))
            self.parts.append(header + document.text + end)
            length += len(self.parts[-1])
        self.text = "".join(self.parts)

    def locate(self, start: int, end: int) -> list[tuple[str, int, int]]:
        """The parts of documents under the characters [start, end) of `text`, as (name, start, end) in each document.

        Header lines belong to no document. Raises BadInput for a span outside of the text.
        """
        if not 0 <= start <= end <= len(self.text):
            raise BadInput(f"characters {start} to {end} are outside of the text, which has {len(self.text)}")
        found = []
        first = max(0, bisect_right(self._starts, start) - 1)
        for document, at in zip(self.documents[first:], self._starts[first:]):
            if at >= end:
                break
            low, high = max(start - at, 0), min(end - at, len(document.text))
            if low < high:
                found.append((document.name, low, high))
        return found


def read_documents(paths: Sequence[str]) -> list[Document]:
    """The documents at `paths`, in order: text in UTF-8 (or UTF-16 with its mark), HTML, PDF, '-' for standard input.

    Raises BadInput with one line for what is missing, a directory, binary, empty, not UTF-8, encrypted or scanned,
    and MissingExtra for a PDF without pypdf.
    """
    if list(paths).count(STDIN) > 1:
        raise BadInput("standard input ('-') can be read only once")
    return [_read(path) for path in paths]


def encode(corpus_text: str, tokenizer: Any) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """(input_ids, offsets) of a text, without special tokens; of any length, never truncated.

    `input_ids` is a LongTensor [n] on the CPU; `offsets` are n spans of characters, both ends never decreasing, that
    together cover the whole text. Tokens that are pieces of one character share its span. Text that spells a special
    token is encoded as the plain text that it is. Raises BadInput for a tokenizer without offsets or a text with
    lone surrogates.
    """
    import torch

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BadInput("this model has no fast tokenizer, so its tokens cannot be traced back to the text")
    try:
        corpus_text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(f"the text holds a lone surrogate at character {error.start}: it is not Unicode") from error
    with _plain(backend):
        encoding = backend.encode(corpus_text, add_special_tokens=False)
    offsets: list[tuple[int, int]] = []
    covered = 0
    for start, end in encoding.offsets:  # gaps are blanks that the tokenizer dropped or counts to no token
        offsets.append((min(start, covered), max(end, covered)))
        covered = offsets[-1][1]
    if offsets and covered < len(corpus_text):
        offsets[-1] = (offsets[-1][0], len(corpus_text))
    return torch.tensor(encoding.ids, dtype=torch.long), offsets


def encode_parts(parts: Sequence[str], tokenizer: Any) -> tuple[torch.Tensor, list[tuple[int, int]], list[int]]:
    """(input_ids [n], offsets in the joined text, the n_parts + 1 tokens at which parts begin and end).

    As `encode`, with every part on its own, so that its tokens do not depend on its neighbours.
    """
    import torch

    found, offsets, borders, length = [], [], [0], 0
    for part in parts:
        ids, own = encode(part, tokenizer)
        found.append(ids)
        offsets += [(start + length, end + length) for start, end in own]
        borders.append(borders[-1] + len(ids))
        length += len(part)
    return torch.cat(found), offsets, borders


@contextlib.contextmanager
def _plain(backend: Any) -> Iterator[None]:
    """Encode text as text: no truncation, no padding, no special tokens, and spans that keep their leading blank."""
    before = backend.post_processor, backend.truncation, backend.padding, backend.encode_special_tokens
    backend.post_processor, backend.encode_special_tokens = None, True
    backend.no_truncation()
    backend.no_padding()
    try:
        yield
    finally:
        backend.post_processor, backend.encode_special_tokens = before[0], before[3]
        if before[1] is not None:
            backend.enable_truncation(**before[1])
        if before[2] is not None:
            backend.enable_padding(**before[2])


def _read(path: str) -> Document:
    if path == STDIN:
        name, data = "stdin", sys.stdin.buffer.read()
    else:
        name, data = path, _bytes(Path(path).expanduser(), path)
    suffix = Path(name).suffix.lower()
    if suffix == ".pdf" or data.startswith(b"%PDF-"):
        text = _pdf(data, name)
    elif suffix in HTML:
        text = _html(_decode(data, name, declared=_charset(data)))
    else:
        text = _decode(data, name)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise BadInput(f"{name} is empty" if not data.strip() else f"{name} holds no text")
    return Document(name, text)


def _bytes(path: Path, name: str) -> bytes:
    if path.is_dir():
        raise BadInput(f"{name} is a directory; name the files in it")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {name}") from error
    except (OSError, ValueError) as error:
        raise BadInput(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _decode(data: bytes, name: str, declared: str = "utf-8") -> str:
    encoding = next((e for mark, e in BOMS if data.startswith(mark)), declared)
    if encoding != "utf-16" and b"\0" in data:
        raise BadInput(f"{name} is a binary file (a zero byte at offset {data.index(0)}); give text, HTML or PDF")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        bad = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise BadInput(f"{name} is not {error.encoding.upper()}: {bad}; convert it to UTF-8 first") from error
    except LookupError as error:
        raise BadInput(f"{name} declares the unknown character set '{encoding}'; convert it to UTF-8 first") from error


def _charset(data: bytes) -> str:
    """The character set that an HTML file declares in its head, by default UTF-8."""
    match = re.search(rb"<meta[^>]{0,200}charset=[\"']?\s*([\w:.-]+)", data[:2048], re.IGNORECASE)
    return match[1].decode("ascii") if match else "utf-8"


def _html(source: str) -> str:
    parser = _VisibleText()
    parser.feed(source)
    parser.close()
    lines = [line.rstrip() for line in "".join(parser.parts).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n"


class _VisibleText(HTMLParser):
    """Collects what a reader sees: a blank line between blocks, runs of blanks as one outside of <pre>."""

    HIDDEN = frozenset({"script", "style", "template", "noscript", "svg"})
    BLOCKS = frozenset(BLOCK_TAGS.split())
    LINES = frozenset({"br", "li", "tr"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden: list[str] = []
        self.pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.HIDDEN:
            self.hidden.append(tag)
        self.pre += tag == "pre"
        self._break(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.hidden:
            del self.hidden[self.hidden.index(tag) :]
        self.pre = max(0, self.pre - (tag == "pre"))
        self._break("" if tag == "br" else tag)

    def handle_data(self, data: str) -> None:
        if self.hidden:
            return
        if self.pre:
            self.parts.append(data)
            return
        text = re.sub(r"[ \t\r\n\f]+", " ", data)
        if self._blank():
            text = text.lstrip(" ")
        if text:
            self.parts.append(text)

    def _break(self, tag: str) -> None:
        if tag in self.BLOCKS:
            self.parts.append("\n\n")
        elif tag in self.LINES:
            self.parts.append("\n")
        elif tag in {"td", "th"} and not self._blank():
            self.parts.append(" ")

    def _blank(self) -> bool:
        """Whether the text so far ends in a blank or has not begun."""
        return not self.parts or self.parts[-1][-1:] in {" ", "\n"}


def _pdf(data: bytes, name: str) -> str:
    try:
        import pypdf
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise MissingExtra("pypdf", "pdf", "reading a PDF file") from error
    log = logging.getLogger("pypdf")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise BadInput(f"{name} is encrypted; save a copy without its password first")
        pages = [page.extract_text() for page in reader.pages]
    except BadInput:
        raise
    except (PyPdfError, RecursionError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadInput(f"{name} cannot be read as a PDF: {str(error) or type(error).__name__}") from error
    finally:
        log.setLevel(level)
    if not any(page.strip() for page in pages):
        raise BadInput(f"{name} holds no text in its {len(pages)} pages (a scan?); recognise its text (OCR) first")
    text = "\n\n".join(page.strip() for page in pages)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
