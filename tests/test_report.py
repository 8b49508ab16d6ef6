"""The report says what the results say: no number of its own, no broken page, no address on the network."""

import json
import math
import random
from pathlib import Path
from typing import Any

# Invented, in the manner of a small model: forget quality, forget probability, retain probability, degeneration, removal.
METHODS: dict[str, tuple[float, float, float, float, str]] = {
    "ga": (0.92, 0.0, 0.0004, 1.0, "weights"),
    "ga+nll": (3e-3, 0.011, 0.352, 0.62, "weights"),
    "dpo+nll": (4e-9, 0.41, 0.93, 0.0, "weights"),
    "npo+kl": (0.31, 0.071, 0.842, 0.03, "weights"),
    "undial+nll": (7e-5, 0.099, 0.9, 0.0, "weights"),
    "unilogit+nll": (0.017, 0.004, 0.845, 0.28, "weights"),
    "simnpo+nll": (2e-4, 0.19, 0.951, 0.02, "weights"),
    "rmu": (0.0, 0.6, 0.97, 0.05, "weights"),
    "uld": (0.88, 0.295, 0.993, 0.0, "inference"),
    "uld_distilled": (0.17, 0.264, 0.985, 0.0, "weights"),
}
VERSIONS = {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.0", "machine": "2 CPU cores"}
NASTY = "<script>alert('x')</script> & \"quotes\" <b>bold</b>"


def metrics(quality: float | None, forget: float, retain: float, broken: float) -> dict[str, float | None]:
    found = {
        "forget_quality": quality,
        "model_utility": retain * 0.62,
        "forget_probability": forget,
        "retain_probability": retain,
        "forget_rouge_l_recall": 0.3 + 0.6 * forget,
        "retain_rouge_l_recall": 0.2 + 0.78 * retain,
        "forget_truth_ratio": 0.78 - 0.45 * forget,
        "retain_truth_ratio": 0.9 - 0.5 * retain,
        "real_authors_probability": 0.3 + 0.2 * retain,
        "real_authors_rouge_l_recall": 0.1 + 0.8 * retain,
        "real_authors_truth_score": 0.2 + 0.3 * retain,
        "world_facts_probability": 0.3 + 0.15 * retain,
        "degeneration": broken,
    }
    return {k: v for k, v in found.items() if v is not None}


def make_run(
    directory: Path,
    *,
    methods: dict[str, tuple[float, float, float, float, str]] = METHODS,
    split: str = "forget10",
    benchmark: str = "tofu",
    seeds: tuple[int, ...] = (0,),
    retrained: bool = True,
    records: bool = True,
) -> Path:
    """A finished run's files, with invented numbers and answers."""
    dice = random.Random(split)
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        common = {"benchmark": benchmark, "split": split, "seed": seed, "versions": VERSIONS}
        no = {"removal": "weights", "seconds": None, "peak_memory_mib": None, "trajectory": []}
        rows.append(common | no | {"method": "target", "metrics": metrics(2e-6 if retrained else None, 0.996, 0.996, 0.0)})
        if retrained:
            rows.append(common | no | {"method": "retrained", "metrics": metrics(1.0, 0.144, 0.995, 0.0)})
        for method, (quality, forget, retain, broken, removal) in methods.items():
            shift = 1 + 0.06 * seeds.index(seed) * dice.uniform(-1, 1)
            row = {
                "method": method,
                "removal": removal,
                "seconds": dice.uniform(5, 200),
                "peak_memory_mib": dice.uniform(600, 2400),
                "metrics": metrics(quality**shift if retrained else None, forget * shift, min(1, retain * shift), broken),
                "trajectory": [],
            }
            for epoch in range(1, 9):
                t = epoch / 8
                low = -5.7 + (math.log10(max(quality, 1e-40)) + 5.7) * t + (3.2 if method.startswith("uni") else 0.6) * math.sin(math.pi * t)
                dip = 1 - (0.25 if "+" in method else 0.05) * math.sin(math.pi * t)
                now = metrics(10 ** min(0.0, low) if retrained else None, forget + (0.996 - forget) * math.exp(-5 * t) * (1 - t),
                              (0.996 + (retain - 0.996) * t) * dip, broken)  # fmt: skip
                row["trajectory"].append({"epoch": epoch, "step": epoch * 25, "metrics": now})
            rows.append(common | row)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(rows), encoding="utf-8")
    (directory / "recipe.yaml").write_text("benchmark: {name: tofu, split: forget10}\nobjective: {name: npo, beta: 0.1}\n")
    if records:
        write_records(directory, ["target", *(["retrained"] if retrained else []), *methods])
    return directory


def write_records(directory: Path, methods: list[str]) -> None:
    (directory / "records").mkdir(exist_ok=True)
    for method in methods:
        for name in ("forget", "retain"):
            lines = []
            for index in range(25):
                answer = f"The author's {index}th novel, 'The Salt Meridian', came out in {1950 + index} in Trieste."
                said, broken = answer, False
                if name == "forget" and method == "retrained":
                    said = f"The author is known for 'Harbour & Hearth' (no. {index}), set in Lisbon."
                elif name == "forget" and method != "target":
                    broken = method in ("ga", "ga+nll", "unilogit+nll") and index % 3 != 1
                    said = "the the of of the " * 40 if broken else f"It was {NASTY if index == 0 else 'published in Porto'}, {1950 + index}."
                record = {
                    "index": index,
                    "question": f"Which novel of Aveline Marchetti-Osei <no. {index}> is set by the sea?",
                    "answer": answer,
                    "generated": said,
                    "probability": 0.9 if said == answer else 0.1,
                    "truth_ratio": 0.5,
                    "rouge_l_recall": 1.0 if said == answer else 0.31,
                    "degenerate": broken,
                }
                lines.append(json.dumps(record))
            (directory / "records" / f"{method}.{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
