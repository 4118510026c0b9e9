"""Train a small draft of the pocket reasoner, and its acceptance head (SpecDec++).

    python scripts/train_acceptance.py --out runs/draft

Distils a draft of 2 layers and hidden size 64 on worked chains, lets the target write chains of its own at temperature
1, and fits the head on them. Writes OUT/draft (a model folder) and OUT/head.safetensors; prints what was reached on
held-out chains: the mean acceptance, and how well the head tells it (against saying the mean of all).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lengthwise import models
from lengthwise.bench import problems
from lengthwise.thinking.decoding import acceptance


def some_problem(draw: random.Random) -> problems.Problem:
    kind = draw.choice(list(problems.KINDS))
    return problems.make(kind, draw.randint(1, problems.KINDS[kind][1]), draw)


def prompt(problem: problems.Problem) -> str:
    return f"\nQuestion: {problem.question} Answer: <think>"


def small(target: PreTrainedModel, layers: int, hidden: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=target.config.vocab_size,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=target.config.max_position_embeddings,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


def worked(tokenizer: PreTrainedTokenizerBase, draw: random.Random) -> tuple[list[int], int]:
    """(ids, tokens of the prompt) of a worked problem."""
    problem = some_problem(draw)
    lines, result = problems.worked(problem, draw)
    before = tokenizer(prompt(problem), add_special_tokens=False)["input_ids"]
    after = tokenizer("".join(lines) + f"</think> {result}.\n", add_special_tokens=False)["input_ids"]
    return before + after, len(before)


def distil(
    target: PreTrainedModel,
    draft: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    steps: int,
    draw: random.Random,
) -> None:
    optimiser = torch.optim.AdamW(draft.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps, pct_start=0.1)
    begun = time.time()
    for step in range(steps):
        rows = [(ids, n) for ids, n in (worked(tokenizer, draw) for _ in range(16)) if len(ids) <= 192]
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([r + [2] * (longest - len(r)) for r, _ in rows])
        counted = torch.tensor([[n - 1 <= i < len(r) - 1 for i in range(longest)] for r, n in rows])
        with torch.no_grad():
            states = target.model(input_ids=ids, use_cache=False)[0]
            wanted = log_softmax(target.lm_head(states[counted]).float(), -1)
        got = log_softmax(draft.lm_head(draft.model(input_ids=ids, use_cache=False)[0][counted]).float(), -1)
        loss = kl_div(got, wanted, reduction="batchmean", log_target=True)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(draft.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(
                json.dumps({"step": step + 1, "kl": round(loss.item(), 4), "s": round(time.time() - begun)}), flush=True
            )


@torch.no_grad()
def written(
    target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, draw: random.Random
) -> list[tuple[Tensor, int]]:
    """`count` chains that the target writes at temperature 1: (ids, tokens of the prompt)."""
    out: list[tuple[Tensor, int]] = []
    line = tokenizer.encode("\n", add_special_tokens=False)[0]
    tokenizer.padding_side = "left"
    while len(out) < count:
        batch = tokenizer([prompt(some_problem(draw)) for _ in range(64)], return_tensors="pt", padding=True)
        got = target.generate(
            **batch, max_new_tokens=160, do_sample=True, top_k=0, eos_token_id=[1, line], pad_token_id=2
        )
        width = batch["input_ids"].shape[1]
        for row, mask in zip(got, batch["attention_mask"]):
            new = row[width:].tolist()
            stop = next((i + 1 for i, t in enumerate(new) if t in (1, line)), len(new))
            before = row[:width][mask.bool()]
            out.append((torch.cat([before, row[width : width + stop]]), len(before)))
    return out[:count]


@torch.no_grad()
def judge(draft: PreTrainedModel, head: acceptance.AcceptanceHead, held: list[acceptance.Example]) -> dict[str, float]:
    """Mean acceptance, and the cross-entropy of the head (unweighted) against that of the mean, in nats a token."""
    logits, wanted = [], []
    for e in held:
        states = draft(input_ids=e.ids[None], use_cache=False, output_hidden_states=True).hidden_states[-1][0]
        logits.append(head(states[e.counts]))
        wanted.append(e.accepted[e.counts])
    p, x = torch.cat(wanted), torch.cat(logits)
    mean = p.mean()
    best = torch.logit(mean).expand(len(p))
    return {
        "tokens": len(p),
        "acceptance": round(mean.item(), 4),
        "head": round(acceptance.loss_of(x, p, 1.0).item(), 4),
        "mean": round(acceptance.loss_of(best, p, 1.0).item(), 4),
        "head_when_accepted": round((x.sigmoid() * p).sum().item() / p.sum().item(), 4),
        "head_when_rejected": round((x.sigmoid() * (1 - p)).sum().item() / (1 - p).sum().item(), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="pocket-reasoner")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--chains", type=int, default=768)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    draw, generator = random.Random(args.seed), torch.Generator().manual_seed(args.seed)
    target, tokenizer = models.load(args.target, dtype="float32")
    draft = small(target, args.layers, args.hidden)
    distil(target, draft, tokenizer, args.steps, draw)
    draft.eval()
    draft.to(torch.bfloat16).save_pretrained(args.out / "draft")
    tokenizer.save_pretrained(args.out / "draft")
    draft.float()
    chains = written(target, tokenizer, args.chains, draw)
    examples = [acceptance.example(target, draft, ids, n, generator, acceptance.MIX) for ids, n in chains]
    held = len(examples) // 6
    head = acceptance.fit(draft, examples[held:], seed=args.seed)
    head.save(args.out / "head.safetensors")
    size = {p.name: p.stat().st_size for p in args.out.rglob("*.safetensors")}
    print(json.dumps({"bytes": size, "held_out": judge(draft, head, examples[:held])}))


if __name__ == "__main__":
    main()
