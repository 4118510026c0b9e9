"""`lengthwise doctor`: whether this installation works, and what it has to work with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from lengthwise.cli._output import console, print_json, size, table

EPILOG = """Examples:

  lengthwise doctor

  lengthwise doctor --json
"""
JSON = typer.Option(False, "--json", help="Print JSON (docs/json.md).")
VERSION = 1
TOLERANCE = 1e-5  # float32 logits, the house's rule for exact
EXTRAS = {
    "gguf": ("gguf", "accelerate"),
    "pdf": ("pypdf",),
    "endpoint": ("httpx",),
    "serve": ("fastapi", "uvicorn"),
    "embed": ("sentence_transformers",),
    "ray": ("ray",),
}
ENABLES = {
    "gguf": "reading GGUF files, and converting the packaged model",
    "pdf": "reading PDF files",
    "endpoint": "a model behind a server",
    "serve": "lengthwise proxy",
    "embed": "code-split with an embedding model",
    "ray": "spreading a comparison over many processes",
}


@dataclass(frozen=True)
class Check:
    """One line of the report. `state` is 'ok', 'note' (works, with something missing) or 'fails'."""

    name: str
    state: str
    text: str


def doctor(as_json: bool = JSON) -> None:
    """Check that the core works here, and say what is there: versions, extras, models, disk and memory.

    The exit code is 0 when the core works, 1 when it does not.
    """
    checks, values = examine()
    broken = any(check.state == "fails" for check in checks)
    if as_json:
        print_json({"version": VERSION, "ok": not broken, "checks": [asdict(c) for c in checks], **values})
    else:
        out = console()
        marks = {"ok": "ok", "note": "-", "fails": "FAILS"}
        out.print(table(["", "check", "what there is"], [[marks[c.state], c.name, c.text] for c in checks]))
        out.print("\nThe core does not work here." if broken else "\nThe core works.")
    if broken:
        raise typer.Exit(1)


def examine() -> tuple[list[Check], dict[str, Any]]:
    """Every check, and the figures behind them for the JSON form."""
    import lengthwise

    values: dict[str, Any] = {"lengthwise": lengthwise.__version__, "python": platform.python_version()}
    python = f"{platform.python_version()}, lengthwise {lengthwise.__version__}, {platform.platform(terse=True)}"
    checks = [Check("python", "ok" if sys.version_info >= (3, 11) else "fails", python)]
    for one in (_torch, _transformers, _kernels, _self_test, _extras, _models, _places):
        try:
            found, more = one()
        except Exception as error:  # a broken installation fails in ways of its own: say so and go on
            where = one.__name__.strip("_").replace("_", "-")
            found, more = [Check(where, "fails", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")], {}
        checks += found
        values.update(more)
    return checks, values


def _torch() -> tuple[list[Check], dict[str, Any]]:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    cuda = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    text = f"{torch.__version__}, {torch.get_num_threads()} threads, {capability}, " + (
        ", ".join(cuda) or "no CUDA device"
    )
    values = {"version": torch.__version__, "threads": torch.get_num_threads(), "cpu": capability, "cuda": cuda}
    return [Check("torch", "ok", text)], {"torch": values}


def _transformers() -> tuple[list[Check], dict[str, Any]]:
    here = importlib.metadata.version("transformers")
    supported = _requirement("transformers")
    good = True
    if supported:
        from packaging.specifiers import SpecifierSet

        good = SpecifierSet(supported).contains(here, prereleases=True)
    range_text = f"supported: {supported}" if supported else "supported range not known"
    text = f"{here} ({range_text})" + ("" if good else f": pip install 'transformers{supported}'")
    values = {"version": here, "supported": supported, "in_range": good}
    return [Check("transformers", "ok" if good else "fails", text)], {"transformers": values}


def _kernels() -> tuple[list[Check], dict[str, Any]]:
    from lengthwise.kernels import library

    here = library.available()
    values = {"backend": library.backend(), "isa": library.chosen(), "available": here}
    return [Check("kernels", "ok" if here else "note", library.describe())], {"kernels": values}


def _requirement(package: str) -> str:
    """The version range of `package` that this installation of Lengthwise asks for, or ''."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("lengthwise") or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return ""
    found = (Requirement(line) for line in lines)
    return next((str(r.specifier) for r in found if r.name == package and r.marker is None), "")


def _self_test() -> tuple[list[Check], dict[str, Any]]:
    """Attach 'dense' to a tiny random Llama and compare its logits with those of the plain model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lengthwise.core.stack import stack

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).float().eval()
        ids = torch.randint(0, 64, (1, 48))
        plain = model(ids).logits
        with stack("dense").on(model) as run:
            ours = model(ids, past_key_values=run.cache()).logits
        error = float((plain - ours).abs().max())
        left = float((plain - model(ids).logits).abs().max())
    good = error <= TOLERANCE and left == 0.0
    text = f"a tiny Llama under 'dense' gives the plain model's logits, largest error {error:.1e}"
    if not good:
        text = f"a tiny Llama under 'dense' is off by {error:.1e} (allowed {TOLERANCE:.0e}); {left:.1e} after it"
    return [Check("self-test", "ok" if good else "fails", text)], {"self_test": {"ok": good, "error": error}}


def _extras() -> tuple[list[Check], dict[str, Any]]:
    checks, values = [], {}
    for extra, packages in EXTRAS.items():
        versions = {package: _version(package) for package in packages}
        missing = [package for package, version in versions.items() if version is None]
        if missing:
            text = f"{ENABLES[extra]} needs {' and '.join(missing)}: pip install 'lengthwise[{extra}]'"
        else:
            text = f"{ENABLES[extra]} ({', '.join(f'{p} {v}' for p, v in versions.items())})"
        checks.append(Check(f"extra {extra}", "note" if missing else "ok", text))
        values[extra] = {"present": not missing, "enables": ENABLES[extra], "packages": versions}
    return checks, {"extras": values}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _models() -> tuple[list[Check], dict[str, Any]]:
    from lengthwise import models
    from lengthwise.models._packaged import folder_of

    checks, values = [], {}
    for name, packaged in models.PACKAGED.items():
        folder, present, verified = folder_of(name), models.is_ready(name), False
        if not folder.exists():
            text = f"not downloaded ({size(packaged.disk)} of disk): lengthwise download {name}"
        else:
            try:
                models.verify(name)
                verified, text = True, f"verified, in {folder}"
            except models.ModelError as error:
                text = f"{error} (lengthwise download {name} --force)"
        checks.append(Check(f"model {name}", "ok" if verified else "note", text))
        values[name] = {"present": present, "verified": verified, "path": str(folder)}
    return checks, {"models": values}


def _places() -> tuple[list[Check], dict[str, Any]]:
    from lengthwise.models import cache_dir
    from lengthwise.plan.machine import available_memory, total_memory

    cache, temporary = cache_dir(), Path(tempfile.gettempdir())
    there = next(p for p in (cache, *cache.absolute().parents) if p.exists())
    free, scratch = shutil.disk_usage(there).free, shutil.disk_usage(temporary).free
    total, available = total_memory(), available_memory()
    usable = there.is_dir() and os.access(there, os.W_OK)
    text = f"{cache}, {size(free)} free" if usable else f"{cache} cannot be written: set LENGTHWISE_CACHE to a folder"
    checks = [
        Check("cache", "ok" if usable else "note", text),
        Check("offload", "ok", f"files of offloaded keys and values go to {temporary}, {size(scratch)} free"),
        Check("memory", "ok", f"{size(available)} of {size(total)} available"),
    ]
    values = {
        "cache": {"path": str(cache), "writable": usable, "free_bytes": free},
        "temporary": {"path": str(temporary), "free_bytes": scratch},
        "memory": {"total_bytes": total, "available_bytes": available},
    }
    return checks, values
