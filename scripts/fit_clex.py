"""Fit the dynamics of `clex` to a model and a text.

    python scripts/fit_clex.py --model pocket-reader --out clex.safetensors
    lengthwise compare --stack "clex:params=clex.safetensors" ...

Without --text the text is generated: the story of `lengthwise compare`. The model is left as it is; what is written
are the learned parameters alone, a few kilobytes.
"""

from __future__ import annotations

import argparse
import random
import sys

import torch

from lengthwise import models
from lengthwise.bench.filler import filler
from lengthwise.position._clex import fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-reader")
    parser.add_argument("--text", default="story", help="story, topics, or a text file")
    parser.add_argument("--out", required=True, metavar="FILE")
    parser.add_argument("--most", type=int, default=4, help="largest number of windows to fit for")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model, tokenizer = models.load(given.model)
    text = "".join(filler(given.text, random.Random(given.seed)).take(20_000))
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    losses: list[float] = []

    def progress(step: int, steps: int, loss: float) -> None:
        losses.append(loss)
        if step % 10 == 0:
            print(f"step {step}/{steps}: loss {sum(losses[-10:]) / 10:.4f}", file=sys.stderr)

    settings = {"most": given.most, "steps": given.steps, "rate": given.rate}
    fit(model.float(), ids, **settings, seed=given.seed, progress=progress).save(given.out)


if __name__ == "__main__":
    main()
