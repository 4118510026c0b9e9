"""Distil a model's attention into an estimator for `sea`, and print what its masks hold.

    python scripts/fit_sea.py --model pocket-reader-4k --out sea.safetensors
    lengthwise compare --stack "sea:params=sea.safetensors" ...

Prints, on held-out text, before and after: the share of the attention beyond what is near that lies in the bins of the
mask (recall), the same of the best mask of that size, and the loss under the mask beside dense.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lengthwise import models
from lengthwise.attention._estimator import Estimator, fit, layers_of, teacher
from lengthwise.bench.filler import filler
from lengthwise.core import compat
from lengthwise.core.stack import stack

WIDTH = 64


@torch.no_grad()
def recall(estimator: Estimator, model: Any, ids: Tensor, top: int) -> tuple[float, float]:
    """Mean over layers and tiles of 64 queries: far attention in the bins of the mask, and in the best ones."""
    found, best = [], []
    for layer, q, k, scale in layers_of(model, ids):
        group = q.shape[0] // k.shape[0]
        bins = estimator.of_keys(layer, k, scale).unflatten(1, (-1, WIDTH)).sum(2)
        for a in range(len(ids) // 2, len(ids), 8 * WIDTH):
            rows = torch.arange(a, a + WIDTH)
            near, exact = teacher(q[:, rows], k, rows, scale, WIDTH)
            guess = estimator.shares(layer, q[:, rows], bins, rows // WIDTH, near, scale)[..., :-1].exp()
            exact = exact[..., :-1]
            count = top * k.shape[0] // WIDTH
            mass = exact.unflatten(0, (-1, group)).sum((1, 2))
            for scores, out in ((guess, found), (exact, best)):
                tile = scores.amax(1).unflatten(0, (-1, group)).amax(1).flatten()
                out.append(float(mass.flatten()[tile.topk(min(count, len(tile))).indices].sum() / mass.sum()))
    return sum(found) / len(found), sum(best) / len(best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-reader-4k")
    parser.add_argument("--text", default="story", help="story, topics, or a text file")
    parser.add_argument("--out", metavar="FILE")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a text that is learned from")
    parser.add_argument("--texts", type=int, default=12, help="how many of them")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--top", type=int, default=256, help="keys of the mask that recall is measured with")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model, tokenizer = models.load(given.model)
    model = model.float()
    text = "".join(filler(given.text, random.Random(given.seed)).take(20_000))
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    held_out, ids = ids[: 2 * given.length], ids[2 * given.length :]

    texts = ids.split(given.length)[: given.texts]

    def progress(step: int, steps: int, loss: float) -> None:
        if step % 25 == 0:
            print(f"  step {step}/{steps}: KL {loss:.3f}", file=sys.stderr, flush=True)

    def loss_under(text: str) -> float:
        with stack(text).on(model) as run:
            return float(run.losses(held_out[None]).mean())

    facts = compat.model_facts(model)
    shape = len(facts.layer_kinds), facts.heads, facts.kv_heads, facts.head_dim, given.features
    settings = {"steps": given.steps, "rate": given.rate, "features": given.features, "seed": given.seed}
    print(f"dense: loss {loss_under('dense'):.4f}", flush=True)
    for what in ("untrained", "distilled"):
        estimator = Estimator(*shape) if what == "untrained" else fit(model, texts, progress=progress, **settings)
        mean, best = recall(estimator, model, held_out, given.top)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sea.safetensors"
            estimator.save(path)
            loss = loss_under(f"sea:params={path},top={given.top}")
        print(f"{what}: recall {mean:.3f} (best mask {best:.3f}), loss {loss:.4f}", flush=True)
    if given.out:
        estimator.save(given.out)
        print(f"{given.out}: {Path(given.out).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
