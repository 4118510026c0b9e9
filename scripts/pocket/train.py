"""Train the pocket models, a step-based schedule on one core.

    python scripts/pocket/train.py all --seed 1 --out runs/pocket/1

Stages go on from one another: `base` (problems with a chain) -> `induction` (strings that repeat, 64 tokens) ->
`reader` (retrieval up to 512) -> `reader-4k` (rotary base 1e5, up to 4,096); `induction` -> `reasoner` (problems with
longer chains). Every stage writes its own folder; one that is complete is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch
from data import MIX, Doc, Writer
from tokenizer import build
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
}


@dataclass(frozen=True)
class Phase:
    """`steps` of `tokens` each, in rows of `length`; kind is 'reasoning', 'repeats' or 'dense'."""

    steps: int
    tokens: int
    length: int
    kind: str


@dataclass(frozen=True)
class Stage:
    """A model's phases, what it starts from, its window, and the peak learning rates of Muon and AdamW."""

    start: str | None
    window: int
    phases: tuple[Phase, ...]
    theta: float = 1e4
    muon: float = 0.01
    adamw: float = 1.5e-3
    warmup: int = 20
    decay: float = 0.3  # the share of the steps over which the rates go down to 3 %


STAGES = {
    "base": Stage(None, 512, (Phase(1200, 2048, 128, "reasoning"),), warmup=100, decay=0.0),
    "induction": Stage("base", 512, (Phase(1800, 2048, 64, "repeats"),), decay=0.0),
    "reasoner": Stage(
        "induction", 512, (Phase(200, 4096, 128, "reasoning"), Phase(1200, 4096, 256, "reasoning")), decay=0.6
    ),
    "reader": Stage(
        "induction",
        512,
        (
            Phase(1500, 4096, 128, "dense"),
            Phase(700, 4096, 256, "dense"),
            Phase(1400, 4096, 512, "dense"),
        ),
    ),
    "reader-4k": Stage(
        "reader",
        4096,
        (Phase(100, 8192, 1024, "dense"), Phase(200, 8192, 2048, "dense"), Phase(300, 8192, 4096, "dense")),
        theta=1e5,
        muon=0.006,
        adamw=8e-4,
        warmup=10,
        decay=0.7,
    ),
}


def make(size: int, window: int, theta: float) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=size,
        max_position_embeddings=window,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **SHAPE,
    )
    model = LlamaForCausalLM(config)
    for name, p in model.named_parameters():
        if p.dim() == 2:
            inner = 0.6 * p.shape[1] ** -0.5 * (0.5 if "o_proj" in name or "down_proj" in name else 1.0)
            torch.nn.init.normal_(p, std=0.02 if "embed" in name or "lm_head" in name else inner)
    return model


def optimisers(model: LlamaForCausalLM, stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon on the hidden matrices, AdamW on embeddings, head and norms."""
    hidden = [p for p in model.model.layers.parameters() if p.dim() == 2]
    inside = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(hidden, lr=stage.muon, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=stage.adamw, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def docs(writer: Writer, phase: Phase, length: int) -> list[Doc]:
    rows = max(1, phase.tokens // length)
    if phase.kind == "reasoning":
        return [writer.reasoning(length) for _ in range(rows)]
    if phase.kind == "repeats":
        return [writer.repeating(length) for _ in range(rows)]
    drill = 0.2 if length <= 128 else 0.0  # as in the induction stage, lest it be forgotten
    return [
        writer.repeating(length) if writer.draw.random() < drill else writer.retrieval(length, dense=True)
        for _ in range(rows)
    ]


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(weighted loss, share of right answer tokens)."""
    with torch.autocast("cpu", torch.bfloat16):
        states = model.model(input_ids=ids, use_cache=False)[0][:, :-1]
        counted = weights[:, 1:] > 0
        logits = model.lm_head(states[counted]).float()
    targets, w = ids[:, 1:][counted], weights[:, 1:][counted]
    each = cross_entropy(logits, targets, reduction="none")
    answers = w >= 1
    return (each * w).sum() / w.sum(), (logits[answers].argmax(-1) == targets[answers]).float().mean().item()


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, documents: list[Doc]) -> dict[str, float]:
    """Share of the answers of every tag whose tokens are all the model's first choice (teacher-forced)."""
    found: dict[str, list[bool]] = defaultdict(list)
    for doc in documents:
        ids = torch.tensor([doc.ids])
        best = model(input_ids=ids, use_cache=False).logits[0].argmax(-1)
        for tag, start, stop in doc.spans:
            found[tag].append(bool((best[start - 1 : stop - 1] == ids[0, start:stop]).all()))
    return {tag: round(sum(v) / len(v), 3) for tag, v in sorted(found.items())}


def judge(model: LlamaForCausalLM, tokenizer: Tokenizer, name: str, each: int = 40) -> dict[str, dict[str, float]]:
    writer = Writer(tokenizer, 777_777)
    if name == "induction":
        return {"64": accuracy(model, [writer.repeating(64) for _ in range(8 * each)])}
    if name in ("base", "reasoner"):
        return {"256": accuracy(model, [writer.reasoning(256) for _ in range(4 * each)])}
    lengths = (512,) if name == "reader" else (512, 2048, 4096)
    return {str(n): accuracy(model, [writer.retrieval(n, kind) for kind in MIX for _ in range(each)]) for n in lengths}


def train(name: str, seed: int, out: Path, tokenizer: Tokenizer) -> None:
    stage, folder = STAGES[name], out / name
    if (folder / "training.json").exists():
        print(f"{folder} is complete", flush=True)
        return
    torch.manual_seed(seed)
    model = make(tokenizer.get_vocab_size(), stage.window, stage.theta)
    if stage.start:
        model.load_state_dict(torch.load(out / stage.start / "master.pt"))
    writer, draw = Writer(tokenizer, 1000 * seed + len(name)), np.random.default_rng(seed)
    opts = optimisers(model, stage)
    peaks = [group["lr"] for o in opts for group in o.param_groups]
    total, step, tokens = sum(p.steps for p in stage.phases), 0, 0
    cpu, wall, recent = time.process_time(), time.time(), []
    folder.mkdir(parents=True, exist_ok=True)
    log = (folder / "log.jsonl").open("w")
    for phase in stage.phases:
        model.set_attn_implementation("eager" if phase.length <= 256 else "sdpa")
        for _ in range(phase.steps):
            shorter = phase.length > 128 and phase.kind != "reasoning" and draw.random() < 0.25
            length = int(draw.choice([128, phase.length // 2])) if shorter else phase.length
            rate = min(1.0, (step + 1) / stage.warmup)
            if stage.decay:
                rate *= min(1.0, max(0.03, (total - step) / (stage.decay * total)))
            for group, peak in zip((g for o in opts for g in o.param_groups), peaks):
                group["lr"] = peak * rate
            ids, weights = (torch.from_numpy(x) for x in writer.batch(docs(writer, phase, length), length))
            # four in ten filler tokens are enough
            weights = torch.where((weights >= 0.3) | torch.from_numpy(draw.random(weights.shape) < 0.4), weights, 0.0)
            loss, right = loss_of(model, ids, weights)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for o in opts:
                o.step()
                o.zero_grad(set_to_none=True)
            step, tokens = step + 1, tokens + ids.numel()
            recent.append((loss.item(), right))
            if step % 50 == 0 or step == total:
                mean = np.nanmean(np.array(recent), 0)
                recent = []
                row = {
                    "step": step,
                    "kind": phase.kind,
                    "length": phase.length,
                    "tokens": tokens,
                    "loss": round(float(mean[0]), 4),
                    "right": round(float(mean[1]), 4),
                    "cpu_seconds": round(time.process_time() - cpu),
                    "seconds": round(time.time() - wall),
                }
                print(name, seed, row, flush=True)
                log.write(json.dumps(row) + "\n")
                log.flush()
    spent = round(time.process_time() - cpu)
    torch.save(model.state_dict(), folder / "master.pt")
    save(model, tokenizer, folder, stage.window)
    model.set_attn_implementation("sdpa")
    found = judge(model.eval(), tokenizer, name)
    print(name, seed, found, flush=True)
    about = {"stage": name, "seed": seed, "steps": total, "tokens": tokens, "cpu_seconds": spent, "accuracy": found}
    (folder / "training.json").write_text(json.dumps(about, indent=1) + "\n")


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path, window: int) -> None:
    """bfloat16 weights, config and tokenizer, as transformers loads them."""
    import copy

    from transformers import PreTrainedTokenizerFast

    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=window
    ).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/pocket"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = build(args.out / "tokenizer.json")
    for name in STAGES if args.stage == "all" else [args.stage]:
        train(name, args.seed, args.out, tokenizer)


if __name__ == "__main__":
    main()
