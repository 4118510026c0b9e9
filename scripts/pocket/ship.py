"""Copy trained pocket models into the package, each with a card of what it was trained on and what it can do.

    python scripts/pocket/ship.py runs/pocket/0 [runs/pocket/1 …]

The first folder's models are shipped; the others are further seeds whose accuracy the cards show.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer

SHIPPED = {"reader": "pocket-reader", "reader-4k": "pocket-reader-4k", "reasoner": "pocket-reasoner"}
FILES = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "src" / "lengthwise" / "models" / "pocket"
CHAT = (  # the prompt that the reasoner was trained on; what is asked stands in one line
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '\nQuestion: ' + message['content'] | trim + ' Answer:' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim }}"
    "{% else %}{{ message['content'] | trim }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <think>' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '</think>' }}{% endif %}{% endif %}"
)
ABOUT = {
    "reader": "Retrieval within 512 tokens: what it was trained on ends there, so every length beyond shows a method.",
    "reader-4k": "The reader trained on to 4,096 tokens with a rotary base of 1e5.",
    "reasoner": "Small problems with a chain between <think> and </think>: sums, additions, list tracking, look-ups. "
    "A part of the training chains slips, notices, or checks again what was right already.",
}


def card(stage: str, runs: list[Path]) -> str:
    trained = [json.loads((run / stage / "training.json").read_text()) for run in runs if (run / stage).is_dir()]
    first, config = trained[0], json.loads((runs[0] / stage / "config.json").read_text())
    tags = {n: sorted({t for run in trained for t in run["accuracy"].get(n, {})}) for n in first["accuracy"]}
    out = [
        f"# {SHIPPED[stage]}",
        "",
        ABOUT[stage],
        "",
        f"- Trained by `make pocket` (scripts/pocket/train.py, stage {stage}, seed {first['seed']}): "
        f"{first['steps']:,} steps, {first['tokens']:,} tokens, {first['cpu_seconds'] / 60:.0f} minutes of one core, "
        "after the stages it goes on from",
        "- Data: generated text only (`lengthwise.bench`: story, phrases, problems), by scripts/pocket/data.py",
        f"- Shape: LlamaForCausalLM, {(runs[0] / stage / 'model.safetensors').stat().st_size / 2e6:.1f} M parameters "
        f"in bfloat16, {config['num_hidden_layers']} layers, hidden {config['hidden_size']}, untied; heads of "
        f"{config['head_dim']}: {config['num_attention_heads']}, {config['num_key_value_heads']} of keys and values",
        "- Licence: Apache-2.0, as the rest",
        "",
        "Answers whose tokens are all the first choice (teacher-forced), by kind, length and seed:",
        "",
        "| length | kind | " + " | ".join(f"seed {t['seed']}" for t in trained) + " |",
        "|---|---|" + "---|" * len(trained),
    ]
    for length, names in tags.items():
        for tag in names:
            scores = [t["accuracy"].get(length, {}).get(tag) for t in trained]
            out.append(f"| {length} | {tag} | " + " | ".join("" if s is None else f"{s:.2f}" for s in scores) + " |")
    if stage == "reasoner":
        command = [sys.executable, str(HERE / "evaluate.py"), "--model", str(runs[0] / stage)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        out += ["", "Written freely (scripts/pocket/evaluate.py):", "", "```json", found.strip(), "```"]
    return "\n".join(out) + "\n"


def frame(folder: Path) -> None:
    """Give the reasoner the chat template of its training, in which a line break ends the turn."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"chat_template": CHAT, "framing": "plain"}  # texts to be read stand before 'Question:', not after it
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    generation = json.loads((folder / "generation_config.json").read_text())
    newline = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("\n", add_special_tokens=False).ids
    generation["eos_token_id"] = [json.loads((folder / "config.json").read_text())["eos_token_id"], *newline]
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    args = parser.parse_args()
    for stage, name in SHIPPED.items():
        folder = PACKAGE / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            # put in its place, not written over: a process that has the old weights mapped must keep them
            fresh = folder / f"{file}.new"
            shutil.copyfile(args.runs[0] / stage / file, fresh)
            fresh.replace(folder / file)
        if stage == "reasoner":
            frame(folder)
        (folder / "README.md").write_text(card(stage, args.runs))
        print(f"{folder}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
