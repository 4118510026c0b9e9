"""Training documents of the pocket models: token ids, a weight for every token, and the spans of the answers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from lengthwise.bench import phrases, problems
from lengthwise.bench.keys import digits
from lengthwise.bench.phrases import Query
from lengthwise.bench.story import Story
from lengthwise.bench.words import ACTS, CITIES, NOUNS, PEOPLE, THINGS, TRAITS

FILLER, ANSWER = 0.1, 1.0  # loss weights
MIX = {
    "needle": 0.12,
    "values": 0.21,
    "queries": 0.1,
    "pairs": 0.11,
    "trace": 0.12,
    "copy": 0.12,
    "common": 0.16,
    "facts": 0.06,
}


class Span(NamedTuple):
    """An answer: its tag and the tokens [start, stop) of the document."""

    tag: str
    start: int
    stop: int


class Doc(NamedTuple):
    """A document of one training row."""

    ids: list[int]
    weights: list[float]
    spans: list[Span]


class Plan(NamedTuple):
    """What a document is made of: facts to scatter in order, one block of text, and (tag, query) at the end."""

    facts: list[str]
    block: str
    asked: list[tuple[str, Query]]


def keys(draw: random.Random, count: int) -> list[str]:
    """Distinct keys: nouns, or a trait and a noun."""
    if count <= 60 and draw.random() < 0.6:
        return draw.sample(NOUNS, count)
    out: dict[str, None] = {}
    while len(out) < count:
        out[f"{draw.choice(TRAITS)} {draw.choice(NOUNS)}"] = None
    return list(out)


def needle(draw: random.Random, room: int, asked: int) -> Plan:
    names = keys(draw, max(1, min(draw.choice([1, 2, 4, 8, 16, 32]), (room - 30 * asked) // 14)))
    values = {k: digits(draw, 5) for k in names}
    queries = [("needle", phrases.ask_needle(k, values[k])) for k in draw.sample(names, min(asked, len(names)))]
    return Plan([phrases.needle(k, v) for k, v in values.items()], "", queries)


def values(draw: random.Random, room: int, asked: int) -> Plan:
    """Keys with several values among keys with one."""
    many = draw.randint(1, max(1, min(4, room // 100)))
    names = keys(draw, many + draw.randint(0, max(0, min(6, room // 60))))
    facts = [(k, digits(draw, 5)) for k in names[many:]]
    facts += [(k, digits(draw, 5)) for k in names[:many] for _ in range(draw.choice([2, 2, 3, 3, 4]))]
    draw.shuffle(facts)
    of = {k: [v for key, v in facts if key == k] for k in names}
    queries = [("values", phrases.ask_values(k, of[k])) for k in names[:many]]
    return Plan([phrases.needle(k, v) for k, v in facts], "", queries)


def queries(draw: random.Random, room: int, asked: int) -> Plan:
    names = keys(draw, draw.randint(2, max(3, min(12, room // 40))))
    of = {k: digits(draw, 5) for k in names}
    out = []
    for _ in range(max(1, asked // 3)):
        wanted = draw.sample(names, draw.randint(2, min(4, len(names))))
        out.append(("queries", phrases.ask_queries([(k, of[k]) for k in wanted])))
    return Plan([phrases.needle(k, v) for k, v in of.items()], "", out)


def pairs(draw: random.Random, room: int, asked: int) -> Plan:
    most = max(2, (room - 28 * asked) // 14)
    names = [k.replace(" ", "_") for k in keys(draw, draw.randint(max(1, most // 4), most))]
    of = {k: digits(draw, 4) for k in names}
    out = [("pairs", phrases.ask_pair(k, of[k])) for k in draw.sample(names, min(asked, len(names)))]
    return Plan([], phrases.pairs_object(list(of.items())), out)


def chains(draw: random.Random, count: int, hops: int) -> tuple[list[list[str]], list[str], list[str]]:
    """(names of every chain, its number, the assignments of all chains in an order that keeps each chain's own)."""
    names = draw.sample(NOUNS, count * (hops + 1))
    own = [names[i * (hops + 1) : (i + 1) * (hops + 1)] for i in range(count)]
    numbers = [digits(draw, 3) for _ in own]
    lines = [[phrases.assign(c[0], v), *(phrases.assign(b, a) for a, b in pairwise(c))] for c, v in zip(own, numbers)]
    order = [i for i in range(count) for _ in range(hops + 1)]
    draw.shuffle(order)
    return own, numbers, [lines[i].pop(0) for i in order]


def trace(draw: random.Random, room: int, asked: int) -> Plan:
    hops = draw.randint(1, 4)
    own, numbers, facts = chains(draw, draw.randint(1, max(1, min(5, room // (20 * (hops + 1))))), hops)
    out = []
    for _ in range(max(1, asked // 2)):
        i, far = draw.randrange(len(own)), draw.randint(0, hops)
        if draw.random() < 0.75:
            out.append(("trace", phrases.ask_trace(own[i][: far + 1], numbers[i])))
        else:
            out.append((f"value{far}", phrases.ask_value(own[i][far], numbers[i])))
    return Plan(facts, "", out)


def copy(draw: random.Random, room: int, asked: int) -> Plan:
    count = draw.randint(4, max(5, min(room // 3, 110)))
    pool = draw.choice([NOUNS, TRAITS + THINGS + ACTS + NOUNS, None])
    if pool and draw.random() < 0.6:
        words = draw.sample(pool, min(count, len(pool)))  # a word that comes twice has two successors
    else:
        words = [draw.choice(pool) if pool else digits(draw, draw.randint(1, 4)) for _ in range(count)]
    while sum(1 if pool else len(w) for w in words) > room // 2 - 16:
        words.pop()
    query = phrases.ask_copy(words, draw.randint(max(2, len(words) // 2), len(words)))
    return Plan([], phrases.word_list(words), [("copy", query)])


def common(draw: random.Random, room: int, asked: int) -> Plan:
    """A list in which three words are frequent, each clearly more than the next."""
    size = max(12, room - 60)
    size = draw.randint(size // 2, size)
    words = draw.sample(NOUNS, len(NOUNS))
    first, ratio = size * draw.uniform(0.2, 0.45), draw.uniform(0.5, 0.75)
    counts = [max(4 - i, round(first * ratio**i)) for i in range(3)]
    frequent, rare = words[:3], words[3:]
    rest = max(0, size - sum(counts))
    body = [w for w, n in zip(frequent, counts) for _ in range(n)]
    others = draw.choices(rare[:60], k=rest)
    if draw.random() < 0.5 or max(Counter(others).values(), default=0) + 2 > counts[2]:  # no other is as frequent
        others = (rare * (rest // len(rare) + 1))[:rest]
    body += others
    draw.shuffle(body)
    tops = draw.sample([1, 2, 3], draw.choice([1, 2, 3]))
    return Plan([], phrases.word_list(body), [("common", phrases.ask_common(frequent[:n])) for n in tops])


def facts(draw: random.Random, room: int, asked: int) -> Plan:
    return Plan([], "", [])  # asked of the story itself, once it is written


PLANS: dict[str, Callable[[random.Random, int, int], Plan]] = {
    f.__name__: f for f in (needle, values, queries, pairs, trace, copy, common, facts)
}


class Writer:
    """Turns plans into documents, with a memory of how segments are encoded."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer, self.draw = tokenizer, random.Random(seed)
        self.known: dict[str, list[int]] = {}
        self.bos, self.eos, self.pad = (tokenizer.token_to_id(t) for t in ("<s>", "</s>", "<pad>"))

    def encode(self, text: str) -> list[int]:
        ids = self.known.get(text)
        if ids is None:
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            if len(text) < 60 and len(self.known) < 400_000:
                self.known[text] = ids
        return ids

    def retrieval(self, length: int, kind: str | None = None, dense: bool = False) -> Doc:
        """A document of at most `length` tokens; `dense` asks as much as fits, so that most tokens teach."""
        draw = self.draw
        kind = kind or draw.choices(list(MIX), list(MIX.values()))[0]
        most = max(1, length // 40 if dense else min(8, length // 64))
        plan = PLANS[kind](draw, length, draw.randint(max(1, most // 2), most))
        story = Story(draw)
        parts = [self.encode(fact) for fact in plan.facts]
        block = self.encode(plan.block) if plan.block else []
        asked = [(tag, self.encode(phrases.asked(q)), self.encode(q.answer)) for tag, q in plan.asked]
        room = length - 2 - sum(map(len, parts)) - len(block) - sum(len(q) + len(a) for _, q, a in asked)
        while room < 0 and len(asked) > 1:
            _, q, a = asked.pop()
            room += len(q) + len(a)
        if room < 0:
            return self.retrieval(length, kind, dense)
        if kind == "facts":
            room -= 22 * most
        elif dense and draw.random() < 0.4:
            room = min(room, draw.choice([0, 20]))
        filler = []
        while len(line := self.encode(story.sentence())) <= room:
            filler.append(line)
            room -= len(line)
        if kind == "facts":
            known = [phrases.ask_home(*x) for x in story.homes.items()]
            known += [phrases.ask_like(*x) for x in story.likes.items()]
            some = draw.sample(known, min(most, len(known)))
            asked = [("facts", self.encode(phrases.asked(q)), self.encode(q.answer)) for q in some]
        ids, weights, spans = [self.bos], [0.0], []
        slots = sorted(draw.randint(0, len(filler)) for _ in parts)
        at_block = draw.randint(0, len(filler)) if block else -1
        for i in range(len(filler) + 1):
            while slots and slots[0] == i:
                slots.pop(0)
                new = parts.pop(0)
                ids += new
                weights += [FILLER / 10] * len(new)
            if i == at_block:
                ids += block
                weights += [FILLER / 5] * len(block)
            if i < len(filler):
                ids += filler[i]
                weights += [FILLER] * len(filler[i])
        for tag, q, a in asked:
            spans.append(Span(tag, len(ids) + len(q), len(ids) + len(q) + len(a)))
            ids += q + a
            weights += [FILLER] * len(q) + self.weigh(a)
        ids.append(self.eos)
        weights.append(FILLER)
        return Doc(ids[:length], weights[:length], spans)

    def weigh(self, answer: list[int]) -> list[float]:
        """Weights of an answer: most where an item of a list begins, more where it is decided whether one follows."""
        comma = self.tokenizer.token_to_id(",")
        weights = [2 * ANSWER if token == comma else ANSWER for token in answer]
        weights[0] = weights[-1] = 2 * ANSWER
        for i, token in enumerate(answer[1:-1], 1):
            if answer[i - 1] == comma and token != comma:
                weights[i] = 3 * ANSWER
        return weights

    def repeating(self, length: int) -> Doc:
        """A document of the induction stage."""
        kind = self.draw.choices(["repeats", "lists", "common", "mix"], [0.3, 0.3, 0.2, 0.2])[0]
        if kind in ("repeats", "lists"):
            return self.repeats(length) if kind == "repeats" else self.lists(length)
        return self.retrieval(length, "common" if kind == "common" else None, dense=True)

    def lists(self, length: int) -> Doc:
        """Keys with one or more values, then every key with all of its values in order, and new keys after these."""
        draw, end = self.draw, self.encode(";")
        ids, weights, spans = [self.bos], [0.0], []
        while True:
            names = draw.sample(NOUNS, draw.randint(1, 3))
            kind = draw.random()
            of = {
                k: [draw.choice(NOUNS) if kind < 0.6 else digits(draw, 2) for _ in range(draw.choice([1, 2, 2, 3, 4]))]
                for k in names
            }
            facts = [(k, v) for k in names for v in of[k]]
            draw.shuffle(facts)
            order = draw.sample(names, len(names))
            told = [t for k, v in facts for t in (*self.encode(f" {k} is {v}"), *end)]
            asked = [
                (self.encode(f" {k}:"), self.encode(" " + ", ".join(v for n, v in facts if n == k))) for k in order
            ]
            if len(ids) + len(told) + sum(len(q) + len(a) + 1 for q, a in asked) > length:
                if spans:
                    return Doc(ids, weights, spans)
                continue
            ids += told
            weights += [0.0] * len(told)
            for q, a in asked:
                spans.append(Span("lists", len(ids) + len(q), len(ids) + len(q) + len(a) + 1))
                ids += q + a + end
                weights += [0.0] * len(q) + self.weigh(a + end)

    def repeats(self, length: int) -> Doc:
        """Strings that repeat, or key-value pairs that recur: what induction heads are learned from."""
        draw = self.draw
        ids, weights, spans = [self.bos], [0.0], []
        if draw.random() < 0.6:
            names = draw.sample(NOUNS, draw.randint(2, min(100, max(3, length // 8))))
            kind = draw.random()
            of = {
                k: f" {draw.choice(NOUNS)}" if kind < 0.5 else " " + digits(draw, draw.choice([1, 2, 3])) for k in names
            }
            form, seen, end = draw.choice([" {}", " {} is", " {} ="]), set(), self.encode(";")
            while True:
                k = draw.choice(names)
                a, b = self.encode(form.format(k)), self.encode(of[k])
                if len(ids) + len(a) + len(b) + 1 > length:
                    return Doc(ids, weights, spans)
                if k in seen:
                    spans.append(Span("pairs_recur", len(ids) + len(a), len(ids) + len(a) + len(b)))
                ids += a + b + end
                weights += [0.0] * len(a) + [ANSWER if k in seen else 0.0] * len(b) + [0.0]
                seen.add(k)
        pool = draw.choice([NOUNS, NOUNS, TRAITS + THINGS + NOUNS, PEOPLE + CITIES + NOUNS, None])
        count = draw.randint(4, max(5, length // 3))
        words = [" " + (draw.choice(pool) if pool else digits(draw, draw.randint(1, 5))) for _ in range(count)]
        string = [t for w in words for t in self.encode(w)][: length // 2]
        again = 0
        while len(ids) + len(string) <= length:
            if again:
                spans.append(Span("repeat", len(ids) + 2, len(ids) + len(string)))
            ids += string
            weights += [0.0, *[ANSWER] * (len(string) - 1)] if again else [0.0] * len(string)
            again = 1
        return Doc(ids, weights, spans)

    def reasoning(self, length: int, kind: str | None = None, mode: str | None = None, level: int | None = None) -> Doc:
        """Problems one after another. Most have a whole chain, some a cut one, some none (the answer at once)."""
        draw = self.draw
        ids, weights, spans = [self.bos], [0.0], []
        hard = 1.0 if length >= 200 else 0.6
        while True:
            k = kind or draw.choices(["sum", "addition", "tracking", "lookup"], [0.35, 0.2, 0.3, 0.15])[0]
            problem = problems.make(k, level or draw.randint(1, max(1, round(problems.KINDS[k][1] * hard))), draw)
            lines, result = problems.worked(problem, draw, checks=0.45 if length >= 200 else 0.1)
            how = mode or draw.choices(["whole", "cut", "none"], [0.72, 0.16, 0.12])[0]
            chain = [t for line in lines for t in self.encode(line)]
            if how != "whole":
                chain = chain[: draw.randint(1, max(1, len(chain) - 1))] if how == "cut" else []
                result = problem.answer
            before = self.encode(f"\nQuestion: {problem.question} Answer: <think>")
            close, answer = self.encode("</think>"), self.encode(f" {result}.")
            if len(ids) + len(before) + len(chain) + len(close) + len(answer) + 1 > length:
                if spans:
                    break
                continue
            ids += before
            weights += [0.02] * len(before)
            if how == "whole":
                spans.append(Span(f"{k}_think", len(ids), len(ids) + len(chain) + 1))
            ids += chain + close
            weights += [ANSWER if how == "whole" else 0.0] * (len(chain) + 1)
            spans.append(Span(f"{k}_{how}", len(ids), len(ids) + len(answer)))
            ids += answer
            weights += [ANSWER if how == "whole" else 0.4] * len(answer)
            if draw.random() < 0.3:
                ids.append(self.eos)
                weights.append(FILLER)
        return Doc(ids, weights, spans)

    def batch(self, docs: Sequence[Doc], length: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids [B, length] padded on the right, weights [B, length])."""
        ids = np.full((len(docs), length), self.pad, dtype=np.int64)
        weights = np.zeros((len(docs), length), dtype=np.float32)
        for row, doc in enumerate(docs):
            ids[row, : len(doc.ids)] = doc.ids
            weights[row, : len(doc.ids)] = doc.weights
        return ids, weights
