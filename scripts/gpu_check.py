"""The parts of `scripts/gpu-check`, one after another; each adds what it found to gpu.json as soon as it is done.

scripts/gpu-check --only tests                      one part
python scripts/gpu_check.py --page gpu.json PAGE    the results as a page of the documentation
"""

import argparse
import gc
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STEPS = ("npo+kl", "unilogit+nll", "undial+nll", "npo+nll", "unilogit+kl")
"""Methods of which a step is measured at eight billion parameters."""
SMALL = ("npo+kl", "unilogit+nll", "undial+nll", "npo+nll", "dpo+nll", "uld")
QUIET = ("-p", "no:cacheprovider", "-p", "no:benchmark", "-W", "default")
"""The packages of the machine are not those that the tests were written with: their warnings are no failures."""
Part = Callable[[bool], Any]


MACHINE = ("device", "python", "torch", "transformers", "peft", "accelerate", "expunge", "threads")
SHAPE_NAMES = {"8b": "8 billion parameters", "1b": "1 billion"}


def tests(_quick: bool) -> dict[str, Any]:
    """The tests that need a device, in eight processes."""
    words = ["-m", "pytest", "tests/gpu", "-q", *QUIET, "--durations=8", "--tb=short", "-n", "8"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    return {"exit": done.returncode, "said": done.stdout[-12_000:] + done.stderr[-1_000:]}


def ceilings(_quick: bool) -> dict[str, float]:
    """Speed of the device itself: a bfloat16 product in TFLOP/s, a copy in TB/s (bytes read and written)."""
    x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    y = torch.randn(2**30, device="cuda", dtype=torch.bfloat16)
    product = _seconds(lambda: x @ x)
    copy = _seconds(lambda: y.clone())
    return {"bf16_tflops": 2 * 8192**3 / product / 1e12, "copy_tb": 2 * y.nbytes / copy / 1e12}


def _seconds(work: Callable[[], object], rounds: int = 10) -> float:
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(rounds):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / rounds


def training(shape: str, methods: tuple[str, ...]) -> Part:
    def part(quick: bool) -> dict[str, Any]:
        from expunge.bench import training as bench

        return bench.measure(shape, methods=methods[: 2 if quick else None], rounds=1 if quick else 3)

    return part


def whole(shape: str) -> Part:
    def part(quick: bool) -> dict[str, Any]:
        from expunge.bench import whole as bench

        return bench.measure(shape, methods=bench.METHODS[: 1 if quick else None], rounds=2 if quick else 5)

    return part


def decode(shape: str) -> Part:
    def part(quick: bool) -> dict[str, Any]:
        from expunge.bench import decode as bench

        return bench.measure(shape, rounds=2 if quick else 6)

    return part


def head(shape: str) -> Part:
    def part(quick: bool) -> dict[str, Any]:
        from expunge.bench import head as bench

        return bench.measure(shape, rounds=3 if quick else 15)

    return part


def evaluation(shape: str) -> Part:
    def part(quick: bool) -> dict[str, Any]:
        from expunge.bench import evaluation as bench

        prompts = ("chat",)
        return bench.measure(shape, questions=10 if quick else 40, prompts=prompts, rounds=1)

    return part


PARTS: dict[str, Part] = {
    "tests": tests,
    "ceilings": ceilings,
    "training-8b": training("8b", STEPS),
    "whole-8b": whole("8b"),
    "decode-8b": decode("8b"),
    "head-8b": head("8b"),
    "training-1b": training("1b", SMALL),
    "decode-1b": decode("1b"),
    "evaluation-1b": evaluation("1b"),
}
"""In order of importance: a run that is cut off leaves its first parts."""


def page(results: dict[str, Any]) -> str:
    """The measurements as one page, in the order of the parts."""
    import importlib

    machine: dict[str, str] = {}
    parts = []
    for name in PARTS:
        found = results.get(name, {}).get("found")
        if not found or "rows" not in found:
            continue
        kind, _, shape = name.partition("-")
        bench = importlib.import_module(f"expunge.bench.{kind}")
        machine |= {key: str(found[key]) for key in MACHINE}
        made: str = bench.markdown(found, command=f"scripts/gpu-check --only {name}")
        lines = [line for line in made.splitlines() if line[2:].partition(":")[0] not in (*MACHINE, "shape")]
        parts.append("\n".join([f"## {lines[0].removeprefix('# ')}: {SHAPE_NAMES[shape]}", *lines[1:]]).strip())
    device = results["ceilings"]["found"]
    head = (
        f"# On one GPU\n\nMade by `scripts/gpu-check` in one run, on random weights. The device itself reaches "
        f"{device['bf16_tflops']:,.0f} TFLOP/s in a bfloat16\nproduct and {device['copy_tb']:.1f} TB/s in a copy.\n\n"
    )
    return head + "".join(f"- {key}: {value}\n" for key, value in machine.items()) + "\n" + "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder for gpu.json (default %(default)s)")
    parser.add_argument("--only", help=f"parts, with commas: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="few methods and turns: does everything run?")
    parser.add_argument("--minutes", type=float, default=8.5, help="begin no part later (default %(default)s)")
    parser.add_argument("--page", nargs=2, metavar=("JSON", "PAGE"), help="write the page of a finished check")
    args = parser.parse_args()
    if args.page:
        results = json.loads(Path(args.page[0]).read_text())
        Path(args.page[1]).write_text(page(results))
        return 0
    chosen = args.only.split(",") if args.only else list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        sys.exit(f"gpu-check: unknown part {unknown[0]!r}. Known: {', '.join(PARTS)}.")
    if not torch.cuda.is_available():
        sys.exit("gpu-check: no CUDA device is here; torch.cuda.is_available() says so.")
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    begun, failed = time.perf_counter(), False
    for name in chosen:
        if time.perf_counter() - begun > 60 * args.minutes:
            results[name] = {"skipped": f"{args.minutes:g} minutes were over"}
        else:
            start = time.perf_counter()
            try:
                results[name] = {"found": PARTS[name](args.quick)}
            except Exception:
                results[name] = {"failed": traceback.format_exc()}
            results[name]["seconds"] = time.perf_counter() - start
            gc.collect()
            torch.cuda.empty_cache()
        found = results[name].get("found", {})
        bad = "failed" in results[name] or found.get("exit", 0) != 0
        failed = failed or bad
        print(f"{name}: {'FAILED' if bad else 'done'} in {results[name].get('seconds', 0):.0f} s", flush=True)
        if bad:
            print(results[name].get("failed") or found.get("said"), flush=True)
        (args.out / "gpu.json").write_text(json.dumps(results, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
