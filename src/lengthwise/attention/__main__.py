"""Measure a model once for methods that need it: python -m lengthwise.attention minference|lserve --out FILE."""

from __future__ import annotations

import argparse
import pydoc_data.topics
from collections import Counter
from pathlib import Path

import torch

from lengthwise import models
from lengthwise.attention import _calibrate, _patterns
from lengthwise.core.spec import parse_count
from lengthwise.errors import BadInput


def main(arguments: list[str] | None = None) -> None:
    """Search patterns for `minference`, or gates for `lserve`, and write them."""
    parser = argparse.ArgumentParser(prog="python -m lengthwise.attention", description=__doc__)
    parser.add_argument("method", choices=["minference", "lserve"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--length", type=parse_count, default=8192, help="tokens to read")
    parser.add_argument("--text", help="minference: a text file; without one, the manual of Python")
    parser.add_argument("--scale", type=float, default=1.0, help="minference: multiplies all sizes (128k tokens: 1)")
    parser.add_argument("--recall", type=float, default=0.0, help="minference: sizes grow until so much is held")
    parser.add_argument("--share", type=float, default=0.5, help="lserve: how many of the KV heads stream")
    args = parser.parse_args(arguments)
    model, tokenizer = models.load(args.model)
    with torch.no_grad():
        if args.method == "lserve":
            ids = _calibrate.repeated(int(model.config.vocab_size), args.length)
            gates, far = _calibrate.streaming_heads(model, ids, share=args.share)
            _calibrate.write_gates(args.out, gates)
            pairs = [(x, g) for xs, gs in zip(far, gates, strict=True) for x, g in zip(xs, gs, strict=True)]
            most = max((x for x, g in pairs if g), default=0.0)
            print(f"{args.out}: {sum(g for _, g in pairs)} of {len(pairs)} KV heads stream")
            print(f"at most {most:.1%} of their attention lies beyond sinks and window")
            return
        topics = pydoc_data.topics.topics
        text = Path(args.text).read_text() if args.text else "\n\n".join(topics[k] for k in sorted(topics))
        ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids[:, : args.length]
        if ids.shape[1] < args.length:
            raise BadInput(f"the text has {ids.shape[1]:,} tokens: give --length {ids.shape[1]} or a longer --text")
        candidates = _calibrate.scaled(_calibrate.CANDIDATES, args.scale)
        found, held = _calibrate.search_patterns(model, ids, candidates=candidates, recall=args.recall)
        _patterns.write(args.out, found)
        kinds = Counter(p.kind for layer in found for p in layer)
        shares = torch.tensor([x for layer in held for x in layer])
        print(
            f"{args.out}: {dict(kinds)}; they hold {shares.mean():.1%} of the attention, the worst {shares.min():.1%}"
        )


if __name__ == "__main__":
    main()
