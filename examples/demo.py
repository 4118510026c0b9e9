"""Asks SmolLM2 (window 8,192 tokens) three questions of about 113,000 tokens of real text.

The text is the standard library's help topics; three made-up facts are planted between its paragraphs, all of them
farther than 8,192 tokens from both ends. Run it with `make demo`.
"""

from __future__ import annotations

import pydoc_data.topics
import sys

import lengthwise
from lengthwise.documents import Document

PLANTED = [
    (
        0.21,
        "The lighthouse keeper of Brannock Head is called Tamsin Okoro.",
        "Who is the lighthouse keeper of Brannock Head?",
    ),
    (
        0.37,
        "The treaty of Vellmar was signed on 14 March 2031 in the old town hall.",
        "When was the treaty of Vellmar signed?",
    ),
    (
        0.86,
        "The annual budget of the Quill Museum is 3.7 million crowns.",
        "What is the annual budget of the Quill Museum?",
    ),
]
RIGHT = ["Tamsin Okoro", "14 March 2031", "3.7 million"]


def text_with_facts() -> str:
    """The help topics, with each fact at the paragraph break after its share of the text."""
    text = "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    for share, fact, _ in reversed(PLANTED):
        at = text.index("\n\n", int(share * len(text))) + 2
        text = text[:at] + fact + "\n\n" + text[at:]
    return text


def show(what: str, done: int, total: int) -> None:
    """A progress line on standard error."""
    print(f"\r{what} {done:,}/{total:,} tokens ", end="" if done < total else "\n", file=sys.stderr, flush=True)


def main() -> int:
    """Ask, print answers, evidence and ledger; the exit status is the number of wrong answers."""
    document = Document("help-topics.txt", text_with_facts())
    answers = lengthwise.ask_all([document], [q for _, _, q in PLANTED], max_new_tokens=32, progress=show, note=print)
    wrong = 0
    for (_, _, question), right, answer in zip(PLANTED, RIGHT, answers, strict=True):
        wrong += right not in answer.answer
        print(f"\nQ: {question}\nA: {answer.answer}   [{'right' if right in answer.answer else 'WRONG'}]")
        for passage in answer.evidence[:3]:
            where = f"{passage.file}:{passage.start}-{passage.end}"
            print(f"   {passage.weight:6.1%}  {where}  {' '.join(passage.text.split())[:90]}")
    print("\nLedger")
    print("\n".join(f"  {line}" for line in answers[-1].ledger.lines()))
    return wrong


if __name__ == "__main__":
    sys.exit(main())
