"""Train a small model with `softplus` attention, one with softmax, and read both far beyond the trained length.

    python scripts/train_softplus.py --out /tmp/softplus

Prints the validation loss of every reading at 1 to 16 times the trained length, in nats for each byte. The text is that
of `pydoc_data.topics`, its last tenth held out. `--out` keeps the models, as transformers writes them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

from lengthwise.attention._plain import attending
from lengthwise.attention.softplus import weights_of
from lengthwise.core.stack import stack

READINGS = {
    "softmax": ("dense", "softplus", "softplus:activation=exp,power=15"),
    "lssa": ("softplus:power=0", "softplus:power=15"),
    "lssar": ("softplus:power=15", "softplus:power=3", "dense"),
}
POWER = {"lssa": 0, "lssar": 15}


def build(length: int) -> Any:
    """The model, always with the same weights at the start."""
    torch.manual_seed(0)
    shape = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 3}
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=256, max_position_embeddings=length, **shape, **special))


def attend_with(power: int) -> Any:
    """Softplus attention for whole sequences: q, k, v [B, H, N, D]."""

    def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        n = q.shape[2]
        scores = nn.functional.normalize(q, dim=-1) @ nn.functional.normalize(k, dim=-1).transpose(2, 3)
        return weights_of(scores, torch.ones(n, n, dtype=torch.bool).tril(), "softplus", power, q.shape[-1]) @ v

    return attend


def train(model: Any, ids: Tensor, length: int, steps: int, batch: int, seed: int) -> None:
    """AdamW with a linear warm-up and a cosine to a tenth."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1, final_div_factor=10)
    model.train()
    begun = time.process_time()
    for step in range(steps):
        starts = torch.randint(0, len(ids) - length, (batch,), generator=draw)
        some = torch.stack([ids[a : a + length] for a in starts.tolist()])
        loss = model(some, labels=some, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        plan.step()
        if step % 100 == 99:
            print(f"  step {step + 1}: {float(loss):.3f}, {time.process_time() - begun:.0f} s", file=sys.stderr)
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=64, help="trained length in bytes")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--windows", type=int, default=4, help="held-out windows of the longest length that are read")
    parser.add_argument("--out", type=Path, help="folder for the models")
    given = parser.parse_args()
    ids = torch.tensor(list("\n".join(topics.values()).encode()))
    cut = len(ids) * 9 // 10
    longest = 16 * given.length
    held_out = ids[cut : cut + given.windows * longest]
    print("model | reading | " + " | ".join(f"{given.length * x}" for x in (1, 2, 4, 8, 16)))
    for name, readings in READINGS.items():
        model = build(given.length)
        if name == "softmax":
            train(model, ids[:cut], given.length, given.steps, given.batch, given.seed)
        else:
            with attending(model, attend_with(POWER[name])):
                train(model, ids[:cut], given.length, given.steps, given.batch, given.seed)
        if given.out is not None:
            model.save_pretrained(given.out / name)
        for reading in readings:
            losses = []
            for times in (1, 2, 4, 8, 16):
                with stack(reading).on(model) as run:
                    windows = held_out.split(given.length * times)
                    losses.append(float(torch.cat([run.losses(w[None]) for w in windows if len(w) > 1]).mean()))
            print(f"{name} | {reading} | " + " | ".join(f"{x:.3f}" for x in losses), flush=True)


if __name__ == "__main__":
    main()
