"""Which methods find what, on a small model that retrieves perfectly within its trained window of 512 tokens.

    python benchmarks/pocket.py --model FOLDER --length 1024 --length 2048 --length 4096 --docs 8

FOLDER holds a Llama of 1.2 M parameters trained on generated text: pass keys among eight, and JSON look-ups among
sixteen keys, in story filler. Answers are teacher-forced, a token at a time; an answer counts when every token of it
is the model's first choice. Beside it: the perplexity of the filler in the second half.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import lengthwise
from lengthwise import models

NAMES = "Anna Bella Carl Diana Edgar Fiona George Hanna Igor Julia Kevin Laura Martin Nora Oscar Paula".split()
CITIES = "Paris London Madrid Berlin Vienna Athens Dublin Oslo Lisbon Prague Warsaw Moscow".split()
THINGS = "house road farmer baker doctor teacher sailor soldier child friend king queen dog cat horse boat".split()
TRAITS = "red blue green old new young tiny huge quiet loud bright dark heavy light warm cold".split()
ACTS = "saw found lost bought sold carried moved watched followed helped called painted".split()
WHEN = "slowly quickly quietly happily sadly often never always again today yesterday later".split()
KEYS = """falcon eagle raven sparrow pigeon parrot penguin ostrich turtle lizard dragon serpent spider beetle hornet
cricket salmon trout shark dolphin walrus otter beaver badger weasel ferret rabbit squirrel monkey gorilla jaguar
panther leopard tiger lion zebra giraffe camel donkey buffalo walnut almond peanut maple willow cedar bamboo cactus
orchid tulip daisy violet lotus clover pepper garlic ginger onion carrot celery""".split()


@dataclass
class Sample:
    """ids [N]; `answers` are (start, stop) of every answer; `filler` are positions whose loss is filler's."""

    ids: Tensor
    answers: list[tuple[int, int]]
    filler: list[int]


def sentence(draw: random.Random, home: dict[str, str]) -> str:
    kind = draw.random()
    if kind < 0.4:
        name = draw.choice(NAMES)
        return f" {name} lives in {home.setdefault(name, draw.choice(CITIES))}."
    if kind < 0.7:
        subject = f" The {draw.choice(TRAITS)} {draw.choice(THINGS)}"
        return f"{subject} {draw.choice(ACTS)} the {draw.choice(THINGS)} {draw.choice(WHEN)}."
    return f" {draw.choice(NAMES)} {draw.choice(ACTS)} a {draw.choice(TRAITS)} {draw.choice(THINGS)}."


def sample(tokenizer, task: str, length: int, seed: int) -> Sample:
    draw = random.Random(f"{task}-{length}-{seed}")

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    if task == "needle":
        values = {k: "".join(draw.choices("0123456789", k=5)) for k in draw.sample(KEYS, 8)}
        facts = [ids(f" The pass key for {k} is {v}.") for k, v in values.items()]
        question = "\nQuestion: What is the pass key for {0}? Answer: The pass key for {0} is"
        asked = [(question.format(k), f" {values[k]}.") for k in draw.sample(list(values), 4)]
    else:
        values = {k: "".join(draw.choices("0123456789", k=4)) for k in draw.sample(KEYS, 16)}
        facts = [ids("\n{" + ",".join(f' "{k}": "{v}"' for k, v in values.items()) + " }")]
        question = '\nExtract the value of the key. Key: "{0}": "'
        asked = [(question.format(k), f'{values[k]}"') for k in draw.sample(list(values), 4)]
    questions = [(ids(q), ids(a)) for q, a in asked]
    room = length - 1 - sum(map(len, facts)) - sum(len(q) + len(a) for q, a in questions)
    home: dict[str, str] = {}
    filler: list[list[int]] = []
    while sum(map(len, filler)) + len(new := ids(sentence(draw, home))) <= room:
        filler.append(new)
    parts = [(f, True) for f in filler]
    for fact in facts:
        parts.insert(draw.randint(0, len(parts)), (fact, False))
    out, free = [tokenizer.bos_token_id], []
    for part, is_filler in parts:
        if is_filler:
            free += range(len(out), len(out) + len(part))
        out += part
    answers = []
    for q, a in questions:
        out += q
        answers.append((len(out), len(out) + len(a)))
        out += a
    return Sample(torch.tensor(out), answers, [i for i in free if i >= length // 2])


@torch.no_grad()
def run_sample(model, stack: str, s: Sample) -> tuple[list[bool], float]:
    with lengthwise.stack(stack).on(model) as run:
        cache = run.cache(len(s.ids))
        tail = s.answers[0][0] - 1
        hidden: list[Tensor] = []
        for _ in run.feed(s.ids[None, :tail], cache, hidden=hidden):
            pass
        for _ in run.feed(s.ids[None, :-1], cache, chunk=1, hidden=hidden):
            pass
        logits = run.logits(torch.cat(hidden, 1)[0]).float()
    first = logits.argmax(-1)
    right = [bool((first[a - 1 : b - 1] == s.ids[a:b]).all()) for a, b in s.answers]
    at = torch.tensor(s.filler)
    return right, float(torch.nn.functional.cross_entropy(logits[at - 1], s.ids[at]))


def stacks(length: int, window: int) -> dict[str, str]:
    half, factor = window // 2, max(1.0, length / window)
    group = 1
    while (window - half) * group + half < length:
        group *= 2
    return {
        "dense": "dense",
        "linear interpolation": f"linear:factor={factor}",
        "dynamic NTK": f"dynamic-ntk:length={length}",
        "YaRN": f"yarn:factor={factor}",
        "StreamingLLM 4 + 508": f"streaming-llm:window={window - 4}",
        "LM-Infinite 10 + 502": f"lm-infinite:sinks=10,window={window - 10}",
        "LM-Infinite, top-5 middle": f"lm-infinite:sinks=10,window={window - 10},top_k=5,top_k_layer=0",
        "Self-Extend": f"self-extend:group={group},window={half}",
        "ReRoPE 256": f"rerope:window={half}",
        "SirLLM 4 + 254 + 254": "sirllm:entropy=254,recent=254",
        "InfLLM, published rule": f"infllm:init=16,local={half},block=32,top=6,chunk=32,to=ram",
        "InfLLM, per-head maximum": f"infllm:init=16,local={half},block=16,top=12,chunk=32,rule=max,to=ram",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--length", type=int, action="append")
    parser.add_argument("--docs", type=int, default=8)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path, default=Path("pocket.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = models.load(args.model)
    window = model.config.max_position_embeddings
    lengths = args.length or [512, 1024, 2048, 4096]
    cells: dict[tuple[str, int], str] = {}
    for length in lengths:
        for name, stack in stacks(length, window).items():
            if args.only not in name:
                continue
            begun = time.process_time()
            row: dict = {"name": name, "stack": stack, "length": length, "docs": args.docs}
            for task in ("needle", "json"):
                right, losses = [], []
                for seed in range(args.docs):
                    got, loss = run_sample(model, stack, sample(tokenizer, task, length, seed))
                    right += got
                    losses.append(loss)
                row[task] = sum(right) / len(right)
                row[f"{task}_n"] = len(right)
                row["perplexity"] = round(math.exp(sum(losses) / len(losses)), 2)
            row["cpu_seconds"] = round(time.process_time() - begun, 1)
            cells[name, length] = f"{row['needle']:.2f} / {row['json']:.2f} ({row['perplexity']:.1f})"
            print(row, file=sys.stderr, flush=True)
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print("| method | " + " | ".join(f"{n:,}" for n in lengths) + " |\n|---|" + "---|" * len(lengths))
    for name in dict.fromkeys(name for name, _ in cells):
        print(f"| {name} | " + " | ".join(cells[name, n] for n in lengths) + " |")


if __name__ == "__main__":
    main()
