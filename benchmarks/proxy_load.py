"""The proxy under load: clients at once before an endpoint that stalls, drops, fails and sends malformed chunks.

    PYTHONPATH=tests python benchmarks/proxy_load.py --clients 64 --each 4 --strategy "short-m@k:m=1,k=4"

prints a JSON line: answers, errors by kind and status, requests that hung (none may), p50 and p95 seconds of an answer,
and what the server wrote for clients that had left. The endpoint, the proxy and the clients share one process, so the
times are those of all three.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from load import KINDS, load


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--each", type=int, default=4, help="requests of a client, one after another")
    parser.add_argument("--strategy", default="short-m@k:m=1,k=4")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"what the endpoint does, of {','.join(KINDS)}")
    parser.add_argument("--timeout", type=float, default=8.0, help="seconds that the proxy gives a request")
    parser.add_argument("--pause", type=float, default=0.005, help="seconds between two tokens of a usual reply")
    given = parser.parse_args()
    got = load(
        given.clients,
        given.each,
        given.strategy,
        kinds=given.kinds.split(","),
        timeout=given.timeout,
        pause=given.pause,
    )
    print(json.dumps({"strategy": given.strategy, "clients": given.clients, **got.to_json()}))
    for ended in got.wrong:
        print(f"wrong: {ended}", file=sys.stderr)
    return 1 if got.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
