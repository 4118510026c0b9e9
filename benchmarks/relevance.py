"""Which relevance finds the segment that holds a fact: certainty of the answer, or likelihood of the question?

    python benchmarks/relevance.py --segment 1024

Six made-up facts are planted in about 113,000 tokens of help topics. For each, the rank of the best segment that holds
it, among all segments, by XL3M's published relevance (entropy of the next token) and by query likelihood.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import sys
import time

import torch

import lengthwise
from lengthwise import models
from lengthwise._reader import Reader, frame
from lengthwise.documents import encode
from lengthwise.prompt.xl3m import Xl3m, cut

FACTS = [
    (
        0.21,
        "The lighthouse keeper of Brannock Head is called Tamsin Okoro.",
        "Who is the lighthouse keeper of Brannock Head?",
    ),
    (0.37, "The treaty of Vellmar was signed on 14 March 2031.", "When was the treaty of Vellmar signed?"),
    (0.52, "The pass key is 48213. Remember it.", "What is the pass key?"),
    (0.63, "The expedition's dog, a grey husky, was named Bramble.", "What was the name of the expedition's dog?"),
    (
        0.74,
        "Doctor Ilse Marrow discovered the blue fungus in a cave near Tallinn.",
        "Where was the blue fungus discovered?",
    ),
    (
        0.86,
        "The annual budget of the Quill Museum is 3.7 million crowns.",
        "What is the annual budget of the Quill Museum?",
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segment", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = "\n\n".join(pydoc_data.topics.topics[k] for k in sorted(pydoc_data.topics.topics))
    for share, fact, _ in reversed(FACTS):
        at = text.index("\n\n", int(share * len(text))) + 2
        text = text[:at] + fact + "\n\n" + text[at:]
    model, tokenizer = models.load("smollm2")
    ids, offsets = encode(text, tokenizer)
    begun = time.process_time()
    with lengthwise.stack("dense").on(model) as run:
        reader = Reader(run, tokenizer, [frame(q, tokenizer) for *_, q in FACTS], ids, None, None, None, "smollm2")
        segments = cut(len(ids), args.segment, args.overlap)
        for a, b in segments:
            reader._probe(a, b, range(len(FACTS)))
            print(f"\r{b:,}/{len(ids):,}", end="", file=sys.stderr, flush=True)
    print(f"{len(ids):,} tokens, {len(segments)} segments, {time.process_time() - begun:.0f} CPU-s\n")
    print("| question | rank by certainty | rank by question | its score | the best other's |\n|---|---|---|---|---|")
    for index, (_, fact, question) in enumerate(FACTS):
        start = text.index(fact)
        holds = [offsets[a][0] <= start and offsets[b - 1][1] >= start + len(fact) for a, b in segments]
        cells = []
        for score in ("certainty", "question"):
            values = [Xl3m(score=score).relevance(reader.probes[a, b, index]) for a, b in segments]
            best = max(v for v, h in zip(values, holds, strict=True) if h)
            other = max(v for v, h in zip(values, holds, strict=True) if not h)
            cells.append((1 + sum(v > best for v, h in zip(values, holds, strict=True) if not h), best, other))
        print(f"| {question} | {cells[0][0]} | {cells[1][0]} | {cells[1][1]:.2f} | {cells[1][2]:.2f} |")


if __name__ == "__main__":
    main()
