"""The local sampler against transformers' own generate(), and its chains against chains that were alone."""

from __future__ import annotations

import asyncio
import functools
import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import small_reader
import tiny
from lengthwise import models
from lengthwise.bench import problems
from lengthwise.bench.framing import Framing
from lengthwise.errors import BadInput, LengthwiseError, StackRefused
from lengthwise.thinking import Settings, Tags, local, think
from lengthwise.thinking._local_draw import Draw, draw
from lengthwise.thinking._local_text import Script, Words
from lengthwise.thinking.chain import KNOWN_TAGS
from lengthwise.thinking.local import LocalChain, LocalSampler
from lengthwise.thinking.tags import find_tags, render

T = TypeVar("T")
GREEDY, HOT = Settings(temperature=0.0), Settings(temperature=1.0)
NEWLINE = 203
STACKS = ["dense", "int8:residual=8", "lm-infinite:sinks=4,window=64", "lazy-eviction:budget=24,window=4"]


@functools.cache
def pocket() -> tuple[Any, Any]:
    return models.load("pocket-reasoner", dtype="float32")


@functools.cache
def questions(count: int = 6) -> list[str]:
    draw = random.Random(4)
    kinds = list(problems.KINDS)
    return [problems.make(kinds[i % 4], 1 + i % 4, draw).question for i in range(count)]


def ask(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def run(work: Callable[[LocalSampler], Awaitable[T]], **options: Any) -> T:
    """`work` with a sampler over the pocket reasoner, unless `model` says otherwise, that is closed in the end."""

    async def whole() -> T:
        sampler = LocalSampler(options.pop("model", None) or pocket(), **options)
        try:
            return await work(sampler)
        finally:
            await sampler.close()
            assert sampler.kv_bytes() == 0

    return asyncio.run(whole())


def generated(model: Any, ids: Sequence[int], count: int, ends: Sequence[int] = ()) -> list[int]:
    """What the plain model writes greedily after `ids`, its end token included."""
    out = model.generate(
        torch.tensor([list(ids)]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=list(ends) or None,
        pad_token_id=0,
    )
    return out[0, len(ids) :].tolist()  # type: ignore[no-any-return]


def wanted(question: str, count: int = 80) -> str:
    """The greedy chain of the pocket reasoner, by generate(), up to the end of its turn."""
    model, tokenizer = pocket()
    ids = generated(model, tokenizer(f"\nQuestion: {question} Answer: <think>")["input_ids"], count, [1, NEWLINE])
    return tokenizer.decode([i for i in ids if i not in (1, NEWLINE)])  # type: ignore[no-any-return]


def test_one_greedy_chain_is_what_generate_writes() -> None:
    async def work(sampler: LocalSampler) -> None:
        chain = await sampler.chain(ask(questions()[0]))
        piece = await chain.write(80, (), GREEDY)
        assert chain.text == piece.text == wanted(questions()[0])
        assert (piece.reason, piece.tokens) == ("end", len(chain.ids) + 1)
        assert chain.written == piece.tokens

    run(work)


def test_chains_that_join_and_leave_in_the_middle_are_as_alone() -> None:
    async def work(sampler: LocalSampler) -> None:
        async def one(question: str, wait: int, most: int) -> str:
            while sampler.passes < wait:
                await asyncio.sleep(0)
            chain = await sampler.chain(ask(question))
            while (await chain.write(most, (), GREEDY)).reason == "length":
                pass
            await chain.close()
            return chain.text

        plan = [(0, 80), (0, 7), (3, 80), (6, 1), (11, 80), (20, 2)]
        got = await asyncio.gather(*(one(q, w, m) for q, (w, m) in zip(questions(), plan, strict=True)))
        assert got == [wanted(q) for q in questions()]
        assert sampler.passes < 0.6 * sampler.tokens  # they did share passes

    run(work)


@pytest.mark.parametrize(("stack", "most_rows"), [*((s, 64) for s in STACKS), ("dense", 2), ("int8", 2)])
def test_a_chain_does_not_depend_on_who_else_is_there(stack: str, most_rows: int) -> None:
    async def work(sampler: LocalSampler) -> None:
        async def one(question: str, seed: int) -> str:
            chain = await sampler.chain(ask(question))
            await chain.write(20, (), HOT.but(seed=seed, top_p=0.95))
            await chain.close()
            return chain.text

        jobs = [(q, seed) for seed in (1, 2) for q in questions(3)]
        together = await asyncio.gather(*(one(*j) for j in jobs))
        alone = [await one(*j) for j in jobs]
        assert together == alone
        assert len(set(together)) > 3  # seeds differ

    run(work, stack=stack, most_rows=most_rows)


def test_the_batch_is_bounded() -> None:
    async def work(sampler: LocalSampler) -> None:
        rows, before = [], sampler._batcher.rows.forward

        def forward(some: Any, ids: Any, lengths: Any) -> Any:
            rows.append(len(some))
            assert threading.current_thread() is not threading.main_thread()
            return before(some, ids, lengths)

        sampler._batcher.rows.forward = forward  # type: ignore[method-assign]
        chains = [await sampler.chain(ask(q)) for q in questions()]
        await asyncio.gather(*(c.write(5, (), GREEDY) for c in chains))
        assert max(rows) == 3
        assert [c.text for c in chains] == [pocket()[1].decode(c.ids) for c in chains]
        assert all(c.written == 5 for c in chains)

    run(work, most_rows=3)


@functools.cache
def grouped(kind: str) -> tuple[Any, Any]:
    """A tiny random model with two key heads for four, over bytes and a few merges."""
    if kind == "llama":
        return small_reader.model(), small_reader.tokenizer()
    torch.manual_seed(2)
    config = Qwen3Config(
        vocab_size=len(small_reader.tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.15,
        eos_token_id=None,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config).eval(), small_reader.tokenizer()


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("stack", ["dense", "dense + lm-infinite:sinks=2,window=400"])
def test_grouped_heads_and_text_of_broken_characters(kind: str, stack: str) -> None:
    model, tokenizer = grouped(kind)
    texts = ["The key", "The key of red is 1. " * 9, "a"]

    async def work(sampler: LocalSampler) -> None:
        sampler._ends = frozenset()
        chains = [await sampler.chain(ask(t)) for t in texts]
        assert sampler.tags is None
        pieces = await asyncio.gather(*(c.write(60, (), GREEDY) for c in chains))
        for text, chain, piece in zip(texts, chains, pieces, strict=True):
            prompt = tokenizer(f"{text.strip()}\nAnswer:")["input_ids"]
            assert chain.ids == generated(model, prompt, 60)
            assert len(prompt) == chain.prompt
            whole = tokenizer.decode(chain.ids)
            assert piece.text == chain.text
            assert whole.startswith(chain.text)
            assert set(whole[len(chain.text) :]) <= {"\ufffd"}

    run(work, model=(model, tokenizer), stack=stack)


def test_sliding_layers_run_under_a_session() -> None:
    model, tokenizer = tiny.model("gemma3"), tiny.tokenizer(["abc"], 260, "<e>")
    prompt = tiny.tokens(50)[0].tolist()

    async def work(sampler: LocalSampler) -> None:
        assert sampler.ledger is not None
        chain = await sampler.chain(ask("a"))
        chain._held.root.ids[:] = chain._held.script.ids[:] = prompt
        chain._held.script = Script.of(sampler._words, prompt)
        chain.prompt = 50
        await chain.write(30, (), GREEDY)
        assert chain.ids == generated(model, prompt, 30)

    run(work, model=(model, tokenizer))


def test_prompts_that_stay_read_are_bounded_in_number_and_in_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(sampler: LocalSampler) -> list[int]:
        left = []
        for n in range(20):
            chain = await sampler.chain(ask(f"What is {n}+1?"))
            await chain.write(1)
            await chain.close()
            left.append(sum(len(root.ids) for root in sampler._recent))
        assert len(sampler._recent) <= local.RECENT
        return left

    each = run(work)[0]
    monkeypatch.setattr(local, "RECENT_TOKENS", 5 * each)
    assert max(run(work)) <= 5 * each
    monkeypatch.setattr(local, "RECENT_TOKENS", 1)
    assert min(run(work)) >= each  # the newest stays


def test_a_prompt_is_read_once_and_forks_share_it() -> None:
    async def work(sampler: LocalSampler) -> None:
        chains = [await sampler.chain(ask(questions()[0])) for _ in range(5)]
        n = chains[0].prompt
        await asyncio.gather(*(c.write(10, (), HOT.but(seed=i)) for i, c in enumerate(chains)))
        assert sorted(c.read for c in chains) == [0, 0, 0, 0, n]
        assert sampler.tokens == n - 1 + 50
        before = sampler.kv_bytes()
        fork = await chains[0].fork()
        assert sampler.kv_bytes() > before
        assert fork.text == chains[0].text
        await fork.write(3, (), GREEDY)
        assert (fork.read, fork.written, sampler.tokens) == (0, 3, n - 1 + 53)

    run(work)


@pytest.mark.parametrize("stack", STACKS)
def test_forks_do_not_touch_each_other(stack: str) -> None:
    async def work(sampler: LocalSampler) -> None:
        async def one(*put: str) -> LocalChain:
            chain = await sampler.chain(ask(questions()[2]))
            await chain.write(9, (), GREEDY)
            for text in put:
                await chain.put(text)
                await chain.write(9, (), GREEDY)
            return chain

        alone = [await one(" wait;", " check:"), await one(" check:", " wait;")]
        chain = await one()
        fork = await chain.fork()
        for mine, its in ((" wait;", " check:"), (" check:", " wait;")):
            await asyncio.gather(chain.put(mine), fork.put(its))
            await asyncio.gather(chain.write(9, (), GREEDY), fork.write(9, (), GREEDY))
        assert [chain.text, fork.text] == [c.text for c in alone]
        assert chain.text != fork.text

    run(work, stack=stack)


def test_a_fork_repeats_its_seed_and_another_seed_does_not() -> None:
    async def work(sampler: LocalSampler) -> None:
        chain = await sampler.chain(ask(questions()[2]))
        await chain.write(5, (), HOT.but(seed=5))
        same, other = await chain.fork(), await chain.fork()
        hot = HOT.but(temperature=3.0)
        await asyncio.gather(*(c.write(20, (), hot.but(seed=s)) for c, s in ((chain, 5), (same, 5), (other, 6))))
        assert chain.text == same.text
        assert chain.text != other.text

    run(work)


@pytest.mark.parametrize("stack", STACKS[:2])
def test_a_stop_string_is_cut_off_forgotten_or_put_back(stack: str) -> None:
    """Against chains that were given the same text from the start."""
    question = questions()[2]
    whole = wanted(question)
    coded = pocket()[1].encode(whole, add_special_tokens=False)
    begun, string = (pocket()[1].decode(coded[a:b]) for a, b in ((0, 3), (3, 6)))

    async def after(sampler: LocalSampler, text: str) -> str:
        fresh = await sampler.chain(ask(question))
        await fresh.put(text)
        await fresh.write(12, (), GREEDY)
        return fresh.text

    async def work(sampler: LocalSampler) -> None:
        for steps in (80, 1):  # the string comes in one piece, and token by token
            for back, more in ((True, ""), (False, " wait;"), (False, "")):
                chain = await sampler.chain(ask(question))
                while (piece := await chain.write(steps, (string, "</think>"), GREEDY)).reason == "length":
                    pass
                assert (piece.reason, piece.stop, chain.text) == ("stop", string, begun)
                assert piece.text == ("" if steps == 1 else begun)
                before, row = sampler.tokens, chain._held.row
                put = (string if back else "") + more
                if put:
                    await chain.put(put)
                assert chain.text == begun + put
                await chain.write(12, (), GREEDY)
                assert chain.text == await after(sampler, begun + put)
                if back:
                    assert whole.startswith(chain.text)
                    assert chain._held.row is row  # nothing was read again
                    assert sampler.tokens - before < 12 + 12 + len(chain.ids) + 1

    run(work, stack=stack)


def test_putting_back_a_stop_token_costs_nothing() -> None:
    async def work(sampler: LocalSampler) -> None:
        chain = await sampler.chain(ask(questions()[0]))
        piece = await chain.write(80, ("</think>",), GREEDY)
        assert piece.stop == "</think>"
        assert "<" not in chain.text
        before = sampler.tokens
        await chain.put("</think>")
        rest = await chain.write(80, (), GREEDY)
        assert chain.text == wanted(questions()[0])
        assert sampler.tokens - before == rest.tokens
        assert chain.written == piece.tokens + rest.tokens

    run(work)


def _spoken(sampler: Words, tokens: Sequence[str], stops: Sequence[str]) -> tuple[Script, str]:
    """A script after tokens with these texts, up to the first stop string."""
    script, came = Script.of(sampler, [0]), ""
    for token in tokens:
        (one,) = sampler.encode(token)
        if came := script.grow(one, stops):
            break
    return script, came


def test_stop_strings_in_tokens_exactly() -> None:
    words = Words(pocket()[1])
    tokens = [" 3", "+", "4", "=", "7", ";", " wait", ";"]
    cases = [
        (("4=",), "4=", " 3+"),  # across tokens
        (("wait",), "wait", " 3+4=7; "),  # begins inside a token
        ((" wa",), " wa", " 3+4=7;"),  # ends inside a token
        (("7; wait", "7;"), "7;", " 3+4=7"[:-1]),  # the one that ends first
        (("=7;", "7;"), "=7;", " 3+4"),  # the longest of those that end together
        (("7;", "=7;"), "=7;", " 3+4"),
        (("wait;", "nothing"), "wait;", " 3+4=7; "),
    ]
    for stops, stop, text in cases:
        script, came = _spoken(words, tokens, stops)
        assert (came, script.text) == (stop, text)
        kept = script.settle()
        assert script.text == text
        assert words.decode(tuple(script.ids[1:])) == text
        assert 1 <= kept <= len(script.ids)
        script, came = _spoken(words, tokens, stops)
        said = list(script.ids)
        script.settle(came + " 5")
        assert script.text == words.decode(tuple(script.ids[1:])) == text + came + " 5"
        if stop != " wa":  # what follows a stop string in its token is dropped
            assert script.ids == [*said, *words.encode(" 5")]


def test_characters_of_several_tokens_come_whole() -> None:
    words = Words(small_reader.tokenizer())
    text = "né日本 🙂!"
    ids = words.encode(text)
    assert len(ids) > len(text)
    script, seen = Script.of(words, [5]), []
    for one in ids:
        script.grow(one, ())
        seen.append(script.text)
    assert all(text.startswith(s) for s in seen)
    assert seen[-1] == text
    script = Script.of(words, [5])
    came = ""
    for one in ids:
        came = came or script.grow(one, ("本",))
        if came:
            break
    assert script.text == "né日"
    script.settle("x")
    assert script.ids[1:] == words.encode("né日") + words.encode("x")


def test_put_text_is_read_as_text_without_a_beginning() -> None:
    model, tokenizer = pocket()

    async def work(sampler: LocalSampler) -> None:
        chain = await sampler.chain(ask(questions()[0]))
        await chain.put(" 3+4=7; wait;")
        await chain.write(8, (), GREEDY)
        prompt = tokenizer(f"\nQuestion: {questions()[0]} Answer: <think> 3+4=7; wait;")["input_ids"]
        assert chain.prompt + len(chain.ids) == len(prompt) + 8
        assert chain.ids[-8:] == generated(model, prompt, 8)
        assert sampler.count(" 3+4=7; wait;") == 8

    run(work)


def test_logprobs_are_of_the_model_at_temperature_one() -> None:
    model, _ = pocket()

    async def work(sampler: LocalSampler) -> None:
        chain = await sampler.chain(ask(questions()[1]))
        hook = lambda logits, ids: logits + torch.linspace(0, 3, len(logits))  # noqa: E731
        piece = await chain.write(9, (), Settings(temperature=2.0, top_p=0.9, seed=1, logprobs=True, logits=hook))
        ids = torch.tensor([chain._held.script.ids])
        with torch.no_grad():
            logp = torch.log_softmax(model(ids).logits[0], -1)[chain.prompt - 1 : -1]
        expected = logp.gather(1, ids[0, chain.prompt :, None])[:, 0]
        torch.testing.assert_close(torch.tensor(piece.logprobs), expected, atol=1e-4, rtol=1e-4)
        assert len(piece.logprobs) == piece.tokens == 9

    run(work)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, {1}), (0.5, {1}), (0.79, {1, 3}), (0.82, {0, 1, 3})])
def test_top_p_keeps_the_fewest_that_suffice(top_p: float, kept: set[int]) -> None:
    logits = torch.log(torch.tensor([[0.125, 0.5, 0.0625, 0.3125]])).expand(400, -1)
    settings = Settings(temperature=1.0, top_p=top_p)
    drawn = draw(logits, [Draw(settings, random.Random(i), []) for i in range(400)])
    assert {d.token for d in drawn} == kept


def test_samples_follow_the_probabilities() -> None:
    """Chi-square of 600 first tokens at temperature 1.5 and top_p .8 against the nucleus, computed by hand."""
    model, tokenizer = pocket()
    prompt = tokenizer(f"\nQuestion: {questions()[0]} Answer: <think> 3+")["input_ids"]
    with torch.no_grad():
        p = torch.softmax(model(torch.tensor([prompt])).logits[0, -1] / 3.0, -1)
    kept: dict[int, float] = {}
    for i in p.argsort(descending=True).tolist():
        if sum(kept.values()) >= 0.8:
            break
        kept[i] = float(p[i])
    share = {i: v / sum(kept.values()) for i, v in kept.items()}

    async def work(sampler: LocalSampler) -> list[int]:
        first = await sampler.chain(ask(questions()[0]))
        await first.put(" 3+")
        chains = [await first.fork() for _ in range(600)]
        hot = Settings(temperature=3.0, top_p=0.8)
        await asyncio.gather(*(c.write(1, (), hot.but(seed=i)) for i, c in enumerate(chains)))
        return [c.ids[-1] for c in chains]

    got = run(work)
    assert set(got) <= set(share)
    common = [i for i in share if 600 * share[i] >= 5]
    chi = sum((got.count(i) - 600 * share[i]) ** 2 / (600 * share[i]) for i in common)
    assert chi < len(common) + 5 * (2 * len(common)) ** 0.5


def test_the_logits_hook_sees_what_was_written_and_its_errors_are_its_own() -> None:
    seven = pocket()[1].encode("7", add_special_tokens=False)[0]
    seen: list[list[int]] = []

    def only_sevens(logits: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
        seen.append(list(ids))
        assert logits.dtype == torch.float32
        assert logits.dim() == 1
        logits[:] = float("-inf")
        logits[seven] = 0.0
        return logits

    def broken(logits: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
        raise ZeroDivisionError

    async def work(sampler: LocalSampler) -> None:
        chains = [await sampler.chain(ask(q)) for q in questions(3)]
        hooks = (only_sevens, broken, None)
        got = await asyncio.gather(
            *(c.write(3, (), HOT.but(logits=h, seed=1)) for c, h in zip(chains, hooks, strict=True)),
            return_exceptions=True,
        )
        assert chains[0].text == "777"
        assert seen == [[], [seven], [seven] * 2]
        assert isinstance(got[1], ZeroDivisionError)
        assert chains[2].written == 3

    run(work)


@pytest.mark.parametrize("stack", STACKS[:2])
def test_cancelled_chains_stop_costing_and_keep_what_they_wrote(stack: str) -> None:
    async def work(sampler: LocalSampler) -> None:
        chains = [await sampler.chain(ask(q)) for q in questions(4)]
        await asyncio.gather(*(c.write(2, (), GREEDY) for c in chains))
        prompts = sampler.tokens - 8
        tasks = [asyncio.create_task(c.write(400, (), HOT.but(seed=1))) for c in chains[:3]]
        while chains[0].written < 6 or not (request := chains[0]._request) or not request.flying:
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        spent = sum(c.written for c in chains)
        await asyncio.sleep(0.05)
        assert sum(c.written for c in chains) == spent
        assert sampler.tokens == prompts + spent  # what was being computed then is paid for, nothing after
        for chain in chains[:2]:
            await chain.close()
        left = chains[2].text
        assert left == pocket()[1].decode(chains[2].ids)
        await asyncio.gather(chains[2].write(5, (), GREEDY), chains[3].write(5, (), GREEDY))
        fresh = await sampler.chain(ask(questions()[2]))
        await fresh.put(left)
        await fresh.write(5, (), GREEDY)
        assert chains[2].text == fresh.text

    run(work, stack=stack)


@pytest.mark.parametrize("stack", STACKS)
def test_no_keys_are_left_of_closed_chains(stack: str) -> None:
    async def work(sampler: LocalSampler) -> None:
        chain = await sampler.chain(ask(questions()[0]))
        await chain.write(1, (), GREEDY)
        await chain.close()
        await sampler._batcher.call(lambda: None)
        prompt = sampler.kv_bytes()  # kept for the next chain of these messages
        assert prompt > 0
        chains = [await sampler.chain(ask(questions()[0])) for _ in range(6)]
        tasks = [asyncio.create_task(c.write(300, (), HOT.but(seed=i))) for i, c in enumerate(chains)]
        while chains[0].written < 3:
            await asyncio.sleep(0)
        for chain in chains:
            await chain.close()
            await chain.close()
        for got in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(got, LengthwiseError) or got.reason == "end"  # type: ignore[union-attr]
        await sampler._batcher.call(lambda: None)
        assert sampler.kv_bytes() == prompt
        with pytest.raises(LengthwiseError, match="was closed"):
            await chains[0].write(1)

    run(work, stack=stack)


def test_the_end_of_the_window_is_an_end_like_another() -> None:
    async def work(sampler: LocalSampler) -> None:
        assert sampler.window == 512
        sampler._ends = frozenset()
        chain = await sampler.chain(ask(questions()[0]))
        await chain.put(" 3;" * 230)
        piece = await chain.write(10_000, (), HOT.but(seed=1))
        assert piece.reason == "length"
        assert chain.prompt + len(chain.ids) == 512
        assert (await chain.write(5)).tokens == 0
        fork = await chain.fork()
        await fork.put(" more")
        assert (await fork.write(5)).reason == "length"
        with pytest.raises(BadInput, match="no room in the window of 512"):
            await sampler.chain(ask("1 " * 600))

    run(work)
    run(_beyond, stack="lm-infinite:sinks=4,window=64")


async def _beyond(sampler: LocalSampler) -> None:
    assert sampler.window is None
    chain = await sampler.chain(ask("1 " * 600))
    assert (await chain.write(3, (), GREEDY)).tokens > 0


def test_layers_are_read_off_as_hidden_states_are() -> None:
    model, tokenizer = pocket()
    answers = [" 7.", " 4", " 12."]

    async def work(sampler: LocalSampler) -> list[list[float]]:
        chain = await sampler.chain(ask(questions()[0]))
        assert len(await chain.layered(answers)) == 6  # before anything was read
        await chain.write(80, ("</think>",), GREEDY)
        fork = await chain.fork()
        await fork.put("</think>")
        await fork.write(1, (), GREEDY)
        text, before = fork.text, fork.written
        busy = asyncio.create_task(chain.write(30, (), HOT.but(seed=1)))
        got = await fork.layered(answers)
        await busy
        assert (fork.text, fork.written) == (text, before)
        with pytest.raises(BadInput, match="empty"):
            await fork.layered(["7", ""])
        await fork.write(80, (), GREEDY)
        assert fork.text == wanted(questions()[0])
        start = tokenizer(f"\nQuestion: {questions()[0]} Answer: <think>{text}")["input_ids"]
        for a, answer in enumerate(answers):
            more = tokenizer(answer, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                states = model(torch.tensor([start + more]), output_hidden_states=True).hidden_states
                for layer, state in enumerate(states[1:]):
                    normed = state if layer == 5 else model.model.norm(state)  # the last is normed already
                    logp = torch.log_softmax(model.lm_head(normed)[0, len(start) - 1 : -1], -1)
                    expected = sum(float(logp[i, t]) for i, t in enumerate(more))
                    assert got[layer][a] == pytest.approx(expected, abs=2e-3)
        return got

    plain = run(work)
    assert len(plain) == 6
    assert run(work, stack="lm-infinite:sinks=4,window=256") == [pytest.approx(row, abs=2e-3) for row in plain]


@pytest.mark.parametrize("stack", STACKS[:2])
def test_after_a_pass_that_failed_chains_can_go_on(stack: str) -> None:
    async def work(sampler: LocalSampler) -> None:
        chains = [await sampler.chain(ask(q)) for q in questions(2)]
        await asyncio.gather(*(c.write(3, (), GREEDY) for c in chains))
        mlp = pocket()[0].model.layers[3].mlp
        hook = mlp.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
        got = await asyncio.gather(*(c.write(80, (), GREEDY) for c in chains), return_exceptions=True)
        hook.remove()
        assert all(isinstance(g, MemoryError) for g in got)
        await asyncio.gather(*(c.write(80, (), GREEDY) for c in chains))
        assert [c.text for c in chains] == [wanted(q) for q in questions(2)]

    run(work, stack=stack)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(StackRefused, match="a chain is read as it is"):
        LocalSampler(pocket(), stack="gemfilter")
    with pytest.raises(BadInput, match="most_rows"):
        LocalSampler(pocket(), most_rows=0)

    async def work(sampler: LocalSampler) -> None:
        chain = await sampler.chain(ask("x"))
        writing = asyncio.create_task(chain.write(3))
        await asyncio.sleep(0)
        for wrong in (chain.put("a"), chain.fork(), chain.write(1), chain.layered(["a"])):
            with pytest.raises(LengthwiseError, match="is being written"):
                await wrong
        await writing
        await sampler.close()
        with pytest.raises(LengthwiseError, match="sampler was closed"):
            await chain.write(1)

    run(work)


def test_the_model_is_as_it_was_and_a_sampler_serves_loop_after_loop() -> None:
    model, _ = pocket()
    before = model.config._attn_implementation
    sampler = LocalSampler(pocket(), stack="int8")
    for _ in range(2):
        thought = asyncio.run(think(questions()[0], sampler, settings=GREEDY))
        assert thought.answer == wanted(questions()[0]).split("</think>")[1].strip(" .")
        assert thought.spent.prompt_tokens in (0, 17)
    assert sampler.ledger is not None
    assert sampler.ledger.consulted["int8"] > 0
    assert (sampler.ledger.tokens_read, sampler.ledger.tokens_written) == (16, 2 * thought.spent.waiting_tokens)
    asyncio.run(sampler.close())
    assert model.config._attn_implementation == before
    assert "forward" not in vars(model.model.layers[0].mlp)


def test_the_template_is_the_prompt_of_the_training_and_texts_are_framed_as_before() -> None:
    _, tokenizer = pocket()
    trained = tokenizer("\nQuestion: What is 2+2? Answer: <think>")["input_ids"]

    async def work(sampler: LocalSampler) -> None:
        assert sampler.tags == Tags("<think>", "</think>")
        chain = await sampler.chain(ask(" What is 2+2? "))
        assert chain._held.script.ids == trained
        chain = await sampler.chain(ask("What is 2+2?"), think=False)
        assert chain._held.script.ids == [*trained, tokenizer.convert_tokens_to_ids("</think>")]

    run(work)
    assert Framing(tokenizer).template == "plain"
    assert Framing(tokenizer, "chat").head.startswith("<s>\nQuestion:")


class _Tokenizer:
    def __init__(self, template: str | None, words: Sequence[str] = ()) -> None:
        self.chat_template, self.words = template, words

    def get_vocab(self) -> dict[str, int]:
        return {w: i for i, w in enumerate(self.words)}

    def apply_chat_template(self, messages: Any, *, enable_thinking: bool = True, **_: Any) -> str:
        assert self.chat_template is not None
        if "refuse" in self.chat_template:
            raise ValueError("roles must alternate\nand more")
        out = f"U:{messages[-1]['content']} A:"
        if "enable_thinking" in self.chat_template and not enable_thinking:
            return out + "<think>\n\n</think>\n\n"
        return out + ("<think>\n" if "opens" in self.chat_template else "")


@pytest.mark.parametrize(
    ("template", "words", "tags", "on", "off"),
    [
        ("</think> enable_thinking", (), KNOWN_TAGS[0], "A:<think>", "A:<think>\n\n</think>\n\n"),
        ("<think> </think> opens", (), KNOWN_TAGS[0], "A:<think>\n", "A:<think>\n</think>"),
        ("nothing", ("[THINK]", "[/THINK]"), KNOWN_TAGS[4], "A:[THINK]", "A:[THINK][/THINK]"),
        ("nothing", ("<think>",), None, "A:", "A:"),
    ],
)
def test_tags_are_found_and_sections_opened(
    template: str, words: Sequence[str], tags: Tags | None, on: str, off: str
) -> None:
    tokenizer = _Tokenizer(template, words)
    assert find_tags(tokenizer) == tags
    asked = ask("what of <think>?")  # a user's tag opens nothing
    assert render(asked, tokenizer, tags) == f"U:what of <think>? {on}"
    assert render(asked, tokenizer, tags, think=False) == f"U:what of <think>? {off}"


def test_messages_that_a_template_refuses_and_none() -> None:
    with pytest.raises(BadInput, match=r"refuses these messages: roles must alternate$"):
        render(ask("x"), _Tokenizer("refuse"), None)
    assert render(ask(" x "), _Tokenizer(None), None) == "x\nAnswer:"
    assert render(ask("x"), _Tokenizer(None), KNOWN_TAGS[0]) == "x\nAnswer: <think>"


def test_a_stack_that_changed_nothing_says_so() -> None:
    def notes(stack: str) -> list[str]:
        async def run() -> list[str]:
            sampler = LocalSampler("pocket-reasoner", stack=stack)
            try:
                return (await think("What is 8+3+4+7 mod 10?", sampler, settings=Settings(temperature=0.0))).notes
            finally:
                await sampler.close()

        return asyncio.run(run())

    assert any("int8 changed nothing" in note for note in notes("int8"))
    assert notes("lm-infinite:sinks=2,window=8") == []
    assert notes("dense") == []
