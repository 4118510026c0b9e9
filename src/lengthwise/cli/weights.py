"""`lengthwise weights`: how long a model thinks, changed in its weights."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lengthwise.thinking._rows import Source
    from lengthwise.thinking.weights import Delta

EPILOG = """Examples:

  lengthwise weights merge ./long ./short --alpha 0.6 --out ./merged

  lengthwise weights valve ./reasoner --to ./instruct --rank 32 --out short.safetensors

  lengthwise weights valve pocket-reasoner --rows chains.jsonl --rank 4 --rate 3e-3 --out short.safetensors

  lengthwise weights think-edit pocket-reasoner --rows chains.jsonl --short 30 --long 80 --out edit.safetensors

  lengthwise weights apply pocket-reasoner short.safetensors --alpha 0.5 --out ./shorter
"""


def _examples(command: str) -> str:
    """Those of the examples that show one command."""
    lines = [line.strip() for line in EPILOG.splitlines()]
    shown = [f"$ {line}" for line in lines if line.startswith(f"lengthwise weights {command} ")]
    return "\n".join(["Examples:", *shown])


app = typer.Typer(help="Change how long a model thinks in its weights: merge, valve, think-edit, apply.")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a shipped model or a hub id.")]
Out = Annotated[str, typer.Option("--out", "-o", metavar="DIR", help="A new folder for the model.")]
OutFile = Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="The update of the weights, safetensors.")]
Rows = Annotated[str, typer.Option("--rows", metavar="FILE", help="Chains: rows of think --out.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON alone on standard output.")]


@app.command("merge", epilog=_examples("merge"))
def merge(
    long: Annotated[str, typer.Argument(metavar="LONG", help="The model that thinks long.")],
    short: Annotated[str, typer.Argument(metavar="SHORT", help="One of the same architecture that thinks short.")],
    out: Out,
    alpha: Annotated[float, typer.Option("--alpha", "-a", help="alpha * LONG + (1 - alpha) * SHORT.")] = 0.8,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="What both were trained from: merge by DARE-TIES.")
    ] = None,
    density: Annotated[
        float | None, typer.Option("--density", help="DARE-TIES: the share of each update to keep (0.25).")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="DARE-TIES: draws which (0).")] = None,
    as_json: Json = False,
) -> None:
    """Merge a model that thinks long with one that thinks short."""
    from lengthwise.errors import BadInput, BadParameter
    from lengthwise.thinking.weights import dare_ties, linear, replaced

    _new(out)
    _finite(alpha)
    if base is None and (density is not None or seed is not None):
        raise BadInput("--density and --seed are for DARE-TIES, which needs --base MODEL")
    if base is not None and not 0 < alpha < 1:
        raise BadParameter("DARE-TIES weighs LONG by alpha and SHORT by 1 - alpha: alpha lies between 0 and 1")
    first, tokenizer = _load(long)
    second, _ = _load(short)
    if base is None:
        weights = linear(first, second, alpha)
    else:
        weights = dare_ties(
            _load(base)[0], [first, second], [alpha, 1 - alpha], 0.25 if density is None else density, seed or 0
        )
    _save(first, tokenizer, replaced(first, weights), out)
    method = "linear" if base is None else "dare-ties"
    _done(as_json, f"{out} holds the merged model ({method}, alpha {alpha:g})", method=method, alpha=alpha, path=out)


@app.command("valve", epilog=_examples("valve"))
def valve(
    model: Model,
    out: OutFile,
    to: Annotated[
        str | None, typer.Option("--to", metavar="MODEL", help="The direction to these weights, without training.")
    ] = None,
    rows: Annotated[
        str | None, typer.Option("--rows", metavar="FILE", help="Or: train it on these chains, rows of think --out.")
    ] = None,
    mix: Annotated[bool, typer.Option("--mix", help="CoT-Valve++: all chains, each at its own share.")] = False,
    stages: Annotated[int, typer.Option("--stages", min=1, help="CoT-Valve+P: in steps, from long to short.")] = 1,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Rank of the update; by default 32, or full.")
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Peak learning rate (4e-5).")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Chains a step (64).")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over each stage (2).")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Draws the order and the first weights (0).")] = None,
    as_json: Json = False,
) -> None:
    """Find the direction in the weights along which chains get shorter (CoT-Valve); weights apply goes along it.

    Of the chains of each question that have the right answer, the shortest is learned.
    """
    from lengthwise.errors import BadInput
    from lengthwise.thinking.weights import Recipe, between, chains, save, train

    if (to is None) == (rows is None):
        raise BadInput("say where the direction leads: --to MODEL, or --rows FILE to train it on chains")
    training = {"rate": rate, "batch": batch, "epochs": epochs, "seed": seed}
    own: dict[str, Any] = {name: value for name, value in training.items() if value is not None}
    if to is not None and (mix or stages > 1 or own):
        raise BadInput("--mix, --stages, --rate, --batch, --epochs and --seed are for training: they go with --rows")
    if mix and stages > 1:
        raise BadInput("--mix learns all lengths at once, --stages one after another: take one of them")
    wide = rank or 32
    recipe = Recipe(rank=wide, scale=2.0 * wide, **own)
    start, tokenizer = _load(model)
    facts: dict[str, Any] = {"path": out}
    if to is not None:
        delta = between(start, _load(to)[0], rank)
    else:
        grouped, left_out = chains.groups(_read(str(rows)), tokenizer)
        if not grouped:
            raise BadInput(f"{rows} has no chain with a right answer to learn from")
        picked = chains.mixture(grouped) if mix else chains.ladder(grouped, stages) if stages > 1 else None
        picked = picked or chains.shortest(grouped)
        delta = train(start.float(), tokenizer, picked, recipe, _teller())
        facts |= {"questions": len(grouped), "chains": sum(map(len, picked)), "left_out": left_out}
    save(delta, out)
    text = f"{out} holds the direction: {delta.numbers():,} numbers for {len(delta.parts):,} weights"
    _done(as_json, text, **facts, numbers=delta.numbers(), weights=len(delta.parts))


@app.command("think-edit", epilog=_examples("think-edit"))
def think_edit(
    model: Model,
    rows: Rows,
    out: OutFile,
    short: Annotated[int, typer.Option("--short", help="Chains with fewer thinking tokens are short.")] = 100,
    long: Annotated[int, typer.Option("--long", help="Chains with more are long.")] = 1000,
    share: Annotated[float, typer.Option("--share", help="The share of heads to edit.")] = 0.04,
    as_json: Json = False,
) -> None:
    """Find the heads that make the model think too shortly, and what takes that out of their weights (ThinkEdit)."""
    from lengthwise.errors import BadInput
    from lengthwise.thinking.weights import chains, save
    from lengthwise.thinking.weights import think_edit as editing

    if short > long:
        raise BadInput("chains below --short must be shorter than those above --long")
    loaded, tokenizer = _load(model)
    if reasons := editing.refusals(loaded):
        raise BadInput(f"ThinkEdit does not know this model: {'; '.join(reasons)}")
    sets: dict[str, list[tuple[str, str]]] = {"short": [], "long": []}
    for source, prompt in chains.prompts(_read(rows), tokenizer):
        count = len(tokenizer(source.thinking, add_special_tokens=False)["input_ids"])
        if count and (count < short or count > long):
            sets["short" if count < short else "long"].append((prompt, source.thinking))
    if not all(sets.values()):
        raise BadInput(
            f"{len(sets['short']):,} chains are below {short:,} tokens and {len(sets['long']):,} above {long:,}: both "
            "kinds are needed (--short, --long)"
        )
    v = editing.directions(loaded, tokenizer, sets["short"], sets["long"])
    added = editing.contributions(loaded, tokenizer, sets["short"], v)
    heads = editing.top_heads(added, share)
    delta = editing.edit(loaded, v, heads)
    save(delta, out)
    named = [{"layer": la, "head": h, "contribution": round(float(added[la, h]), 5)} for la, h in heads]
    text = f"{out} holds the edit of {len(heads)} of {added.numel():,} heads (layer.head): {delta.about['heads']}"
    counts = {"short": len(sets["short"]), "long": len(sets["long"])}
    _done(as_json, text, path=out, heads=named, chains=counts)


@app.command("apply", epilog=_examples("apply"))
def apply(
    model: Model,
    delta: Annotated[str, typer.Argument(metavar="DELTA", help="What valve or think-edit wrote.")],
    out: Out,
    alpha: Annotated[float, typer.Option("--alpha", "-a", help="How far along; 0 is the model as it is.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Write a model with an update added to its weights; beyond alpha 1 it goes farther than the update was made."""
    from lengthwise.thinking.weights import edited, load

    _new(out)
    _finite(alpha)
    update: Delta = load(delta)
    loaded, tokenizer = _load(model)
    _save(loaded, tokenizer, edited(loaded, update, alpha), out)
    _done(as_json, f"{out} holds {model} + {alpha:g} * {delta}", path=out, alpha=alpha, about=dict(update.about))


def _load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from lengthwise import models
    from lengthwise.cli._output import note

    return models.load(name, progress=note)


def _read(path: str) -> list[Source]:
    from lengthwise.errors import BadInput
    from lengthwise.thinking._rows import read_chains

    found, broken = read_chains(path)
    if broken:
        raise BadInput(f"{path}, line {broken[0][0]}: {broken[0][1]}")
    return found


def _finite(alpha: float) -> None:
    from lengthwise.errors import BadParameter

    if not math.isfinite(alpha):
        raise BadParameter(f"alpha is {alpha}, which is no number to go by")


def _new(folder: str) -> None:
    from lengthwise.errors import BadInput

    path = Path(folder).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise BadInput(f"{path} is there already: name a new folder")


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, changed: AbstractContextManager[None], out: str
) -> None:
    from lengthwise.models._gguf import quiet

    folder = Path(out).expanduser()
    with quiet(), changed:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _teller() -> Any:
    """Prints the loss on its way, at most twenty lines."""
    from lengthwise.cli._output import note

    def tell(step: int, steps: int, loss: float) -> None:
        if step == 1 or step == steps or step % max(1, steps // 20) == 0:
            note(f"step {step:,} of {steps:,}: loss {loss:.4f} nats a token")

    return tell


def _done(as_json: bool, text: str, **facts: Any) -> None:
    from lengthwise.cli._output import print_json

    if as_json:
        print_json({"version": 1, **facts})
    else:
        print(text)
