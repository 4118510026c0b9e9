"""Compiles `csrc` into one shared object: every `<op>.cpp` once for each instruction set, linked together.

Needs only the standard library and a C++17 compiler (`CXX`, or c++, g++, clang++ on the path): the build hook of the
package runs it where nothing else is installed. Without a compiler there is no object, a note says so, and everything
runs on torch alone. By hand: `python -m lengthwise.kernels.build`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "csrc"
OBJECT = HERE / "_lib" / "lengthwise_kernels.so"
MANIFEST = OBJECT.with_name("manifest.json")

ISAS = ("portable", "avx2", "avx512", "avx512bf16", "amx", "neon")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "portable": (),
        "avx2": _AVX2,
        "avx512": _AVX512,
        "avx512bf16": (*_AVX512, "-mavx512bf16"),
        "amx": (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
    },
    "aarch64": {"portable": (), "neon": ()},
}
FLAGS["amd64"], FLAGS["arm64"] = FLAGS["x86_64"], FLAGS["aarch64"]
# not -ffast-math: infinities and NaN carry meaning here
COMMON = (
    "-std=gnu++17 -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast -fPIC -fvisibility=hidden"
    " -Wall -Wno-psabi -Wno-maybe-uninitialized -Wno-unused-function"
).split()


@dataclass
class Built:
    """What a build gave: `key` of the sources, compiler and flags; the ISAs and ops inside; notes for the user."""

    key: str = ""
    isas: list[str] = field(default_factory=list)
    ops: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def built() -> Built:
    """The manifest of the last build; an empty one where there was none."""
    try:
        return Built(**json.loads(MANIFEST.read_text()))
    except (OSError, ValueError, TypeError):
        return Built()


def ops() -> list[str]:
    """The names of the ops: the `.cpp` files of `csrc`, without the one that asks the CPU."""
    return sorted(p.stem for p in SOURCES.glob("*.cpp") if p.stem != "isas")


def compiler() -> str | None:
    """The C++ compiler to use, or None: `CXX` when it is set, else c++, g++ or clang++."""
    wanted = os.environ.get("CXX")
    names = [wanted] if wanted is not None else ["c++", "g++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


def build(*, force: bool = False) -> Built:
    """Compile what changed since the last build and write object and manifest. Never raises for a compiler's sake."""
    OBJECT.parent.mkdir(exist_ok=True)
    cxx = compiler()
    if cxx is None:
        return _failed("no C++ compiler was found when Lengthwise was installed")
    table = FLAGS.get(platform.machine().lower(), {"portable": ()})
    key = _key(cxx, table)
    last = built()
    if not force and last.key == key and OBJECT.exists():
        return last
    with tempfile.TemporaryDirectory() as folder:
        return _compile(cxx, table, key, Path(folder))


def _compile(cxx: str, table: dict[str, tuple[str, ...]], key: str, folder: Path) -> Built:
    done = Built(key=key, ops=ops())
    common = [*COMMON]
    if _accepts(cxx, ["-fopenmp"], folder):
        common.append("-fopenmp")
    else:
        done.notes.append(f"{cxx} has no OpenMP: kernels use one thread")
    for isa, flags in table.items():
        if _accepts(cxx, flags, folder):
            done.isas.append(isa)
        else:
            done.notes.append(f"{cxx} does not know the instruction set {isa}")
    jobs = [[*common, "-c", str(SOURCES / "isas.cpp"), "-o", str(folder / "isas.o")]]
    for op in done.ops:
        for isa in done.isas:
            out = str(folder / f"{op}_{isa}.o")
            jobs.append([*common, *table[isa], f"-DLW_ISA={isa}", "-c", str(SOURCES / f"{op}.cpp"), "-o", out])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        errors = [error for error in pool.map(lambda job: _run(cxx, job), jobs) if error]
    target = folder / OBJECT.name
    if not errors:
        link = ["-shared", *(job[-1] for job in jobs), "-o", str(target)]
        link += [flag for flag in common if flag == "-fopenmp"]
        errors = [error for error in [_run(cxx, link)] if error]
    if errors:
        return _failed(f"{cxx} could not compile the kernels: {errors[0]}")
    # a running process may have the old object mapped: put the new one in its place, never write into it
    fresh = OBJECT.with_suffix(f".{os.getpid()}")
    shutil.copyfile(target, fresh)
    fresh.replace(OBJECT)
    return _written(done)


def _failed(reason: str) -> Built:
    OBJECT.unlink(missing_ok=True)
    return _written(Built(notes=[reason]))


def _written(result: Built) -> Built:
    MANIFEST.write_text(json.dumps(asdict(result), indent=1) + "\n")
    return result


def _accepts(cxx: str, flags: list[str] | tuple[str, ...], folder: Path) -> bool:
    source = folder / "probe.cpp"
    source.write_text("int probe() { return 0; }\n")
    return not _run(cxx, [*flags, "-c", str(source), "-o", str(folder / "probe.o")])


def _run(cxx: str, arguments: list[str]) -> str:
    """Run the compiler; its first line of complaint, or "" when it had none."""
    try:
        done = subprocess.run([cxx, *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return next((line for line in lines if "error" in line), lines[0])


def _key(cxx: str, table: dict[str, tuple[str, ...]]) -> str:
    """A hash of everything that the object is made from."""
    digest = hashlib.sha256(repr((cxx, COMMON, table, platform.machine())).encode())
    for path in (*sorted(SOURCES.iterdir()), Path(__file__)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def main() -> int:
    """Build, say what came of it, and exit with 1 when there is no object."""
    result = build(force="--force" in sys.argv[1:])
    for note in result.notes:
        print(f"note: {note}")
    if not result.isas:
        return 1
    print(f"{OBJECT}: {', '.join(result.ops)} for {', '.join(result.isas)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
