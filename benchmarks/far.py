"""One very long reading: is the needle found, and does memory stay flat?

    python benchmarks/far.py --model pocket-reader --length 1m --stack xl3m:segment=128,overlap=32,zoom=0
    python benchmarks/far.py --model smollm2 --length 256k --stack xl3m --task passkey

Prints one JSON line: the score, seconds, and the resident memory at every tenth of the time (Linux), in megabytes.
`growth` is the most that was resident from the second tenth on, over what was resident at its beginning.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path

import torch

from lengthwise.bench import registry
from lengthwise.bench.build import build
from lengthwise.bench.local_model import LocalModel
from lengthwise.core.spec import parse_count


class Resident(threading.Thread):
    """Samples this process's resident memory, in megabytes, until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[float] = []
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.2):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.samples.append(pages * 4096 / 1e6)

    def stop(self) -> None:
        self._done.set()
        self.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-reader")
    parser.add_argument("--stack", required=True)
    parser.add_argument("--task", default="needle:keys=8")
    parser.add_argument("--length", type=parse_count, default=1 << 20)
    parser.add_argument("--depth", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--template", choices=["auto", "chat", "plain"], default="auto")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    subject, task = LocalModel(args.model, template=args.template), registry.parse(args.task)
    sample = build(task, subject.sizes, args.length, depth=args.depth, seed=args.seed)
    resident, begun, cpu = Resident(), time.perf_counter(), time.process_time()
    resident.start()
    outcome = subject.answer(sample, args.stack, subject.sizes.answer_tokens(sample))
    resident.stop()
    samples = resident.samples
    tenths = [samples[min(len(samples) - 1, len(samples) * i // 10)] for i in range(1, 11)]
    row = {
        "model": args.model,
        "stack": args.stack,
        "tokens": outcome.prompt_tokens,
        "score": task.score(outcome.answer, sample)[task.spec.metric],
        "answer": outcome.answer,
        "expected": sample.reference,
        "seconds": round(time.perf_counter() - begun, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "resident_mb": [round(x) for x in tenths],
        "growth": round(max(samples[len(samples) // 10 :]) / tenths[0], 3),
    }
    print(json.dumps(row | outcome.ledger), flush=True)


if __name__ == "__main__":
    main()
