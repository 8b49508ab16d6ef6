"""MMLU as it is asked here and by lm-evaluation-harness, of the same model: every log-probability, and the accuracy.

The harness reads the same questions through its own tasks (`mmlu_anatomy`, …), of which only the source is changed.
"""

import csv
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tokenizers.processors import TemplateProcessing

from expunge.benchmarks import mmlu
from expunge.evals import harness, probes
from expunge.modeling.difference import LogitDifferenceConfig, LogitDifferenceForCausalLM
from expunge.modeling.loading import ScratchConfig, build_scratch, train_tokenizer

lm_eval = pytest.importorskip("lm_eval")

pytestmark = pytest.mark.usefixtures("only_local_tasks")

Question = dict[str, Any]

COLUMNS = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]
SUBJECTS = ("anatomy", "high_school_us_history", "world_religions")
SHOTS = 5
SHAPE = ScratchConfig(layers=2, hidden=32, heads=2, vocab=1024, context=2048)


def made_up(subject: str, n: int) -> list[Question]:
    """Questions with what could be lost on the way: white space at the ends, quotes, commas, lines, other scripts."""
    draw = random.Random(subject)
    words = ["river", "the “old” stone", "lamp, lit", "Δx → 0", "paper\nbridge", "{{garden}}", "wheel; 3 %", "'cloud'"]
    return [
        {
            "subject": subject,
            "question": draw.choice(["", " ", "\n"])
            + f"Which of {subject} follows {' '.join(draw.choices(words, k=4))} ",
            "choices": [draw.choice(["", " "]) + choice for choice in draw.sample(words, 4)],
            "answer": draw.randrange(4),
        }
        for _ in range(n)
    ]


def write_mmlu(folder: Path, questions: list[Question], dev: dict[str, list[Question]]) -> None:
    """The files that `expunge.benchmarks.mmlu` reads."""
    (folder / "dev").mkdir(parents=True)
    (folder / "mmlu_all_val.json").write_text(json.dumps(questions), encoding="utf-8")
    for subject, examples in dev.items():
        with (folder / "dev" / f"{subject}_dev.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows([q["question"], *q["choices"], q["answer"]] for q in examples)


def read_mmlu(folder: Path) -> tuple[list[Question], dict[str, list[Question]]]:
    """Questions and examples by subject, read here without the code that is tested."""
    questions = json.loads((folder / "mmlu_all_val.json").read_text(encoding="utf-8"))
    dev = {}
    for subject in dict.fromkeys(q["subject"] for q in questions):
        with (folder / "dev" / f"{subject}_dev.csv").open(newline="", encoding="utf-8") as file:
            dev[subject] = [
                {"question": r[COLUMNS[0]], "choices": [r[c] for c in COLUMNS[1:5]], "answer": int(r["answer"])}
                for r in csv.DictReader(file)
            ]
    return questions, dev


def write_tasks(folder: Path, questions: list[Question], dev: dict[str, list[Question]]) -> None:
    """The harness's own task of every subject on local rows, and the group `local_mmlu` of all of them."""
    own = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
    for subject, examples in dev.items():
        rows = {"test": [q for q in questions if q["subject"] == subject], "dev": examples}
        files = {split: str(folder / f"{subject}.{split}.jsonl") for split in rows}
        for split, part in rows.items():
            Path(files[split]).write_text("".join(json.dumps(q) + "\n" for q in part), encoding="utf-8")
        task = {"include": str(own / f"mmlu_{subject}.yaml"), "task": f"local_{subject}", "dataset_path": "json"}
        source = {"dataset_name": None, "dataset_kwargs": {"data_files": files}}
        (folder / f"{subject}.yaml").write_text(json.dumps(task | source))
    group = {"group": "local_mmlu", "task": [f"local_{subject}" for subject in dev]}
    group["aggregate_metric_list"] = [{"metric": "acc", "weight_by_size": True}]
    (folder / "local_mmlu.yaml").write_text(json.dumps(group))


def asked_both_ways(folder: Path, tasks: Path, model: Any, tokenizer: Any) -> tuple[float, float, float, float]:
    """(our accuracy, the harness's, largest difference of a log-probability, spread of the letters' of a question)."""
    questions, dev = read_mmlu(folder)
    found, records = probes.evaluate_probes(model, tokenizer, [mmlu.load(folder, shots=SHOTS)], progress=False)
    ours = torch.tensor([record["logps"] for record in records["mmlu"]])
    write_tasks(tasks, questions, dev)
    metrics, raw = harness.run(model, tokenizer, ["local_mmlu"], num_fewshot=SHOTS, include_path=tasks)
    theirs = torch.full_like(ours, torch.nan)
    for subject in dev:
        mine = [i for i, q in enumerate(questions) if q["subject"] == subject]
        for sample in raw["samples"][f"local_{subject}"]:
            theirs[mine[sample["doc_id"]]] = torch.tensor([answer[0] for answer in sample["filtered_resps"]])
    spread = float(ours.std(-1).min())
    return found["mmlu"], metrics["local_mmlu_acc"], float((ours - theirs).abs().max()), spread


def text_of(questions: Iterable[Question]) -> list[str]:
    return [" ".join([q["question"], *q["choices"]]) for q in questions]


def random_model(tokenizer: Any, shape: ScratchConfig) -> Any:
    """Far from uniform, so that the letters differ."""
    model = build_scratch(shape, tokenizer, seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3 if weight.dim() > 1 else 1)
    return model.eval()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen made-up questions of three subjects, those of a subject not side by side."""
    folder = tmp_path_factory.mktemp("mmlu") / "files"
    questions = [q for row in zip(*(made_up(s, 6) for s in SUBJECTS), strict=True) for q in row]
    write_mmlu(folder, questions, {s: made_up(f"{s} ", SHOTS + 1) for s in SUBJECTS})
    return folder


def plain(tokenizer: Any) -> Any:
    return tokenizer


def with_beginning(tokenizer: Any) -> Any:
    """As Llama's, which puts a token before every text."""
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.mark.parametrize("change", [plain, with_beginning])
@pytest.mark.parametrize("kind", ["llama", "difference"])
def test_as_the_harness_asks(small: Path, tmp_path: Path, kind: str, change: Callable[[Any], Any]) -> None:
    questions, dev = read_mmlu(small)
    tokenizer = change(train_tokenizer(text_of([*questions, *(q for part in dev.values() for q in part)]), SHAPE))
    model = random_model(tokenizer, SHAPE)
    if kind == "difference":
        lora = LoraConfig(r=4, init_lora_weights=False)
        model = LogitDifferenceForCausalLM(LogitDifferenceConfig(layers=1), model, lora=lora).eval()
    ours, theirs, difference, spread = asked_both_ways(small, tmp_path, model, tokenizer)
    assert ours == theirs
    assert difference < 1e-4 < 1e-2 < spread


@pytest.mark.slow
def test_two_published_questions_of_every_subject(shared_data: Path, tmp_path: Path) -> None:
    everything, dev = read_mmlu(shared_data / "mmlu")
    seen = Counter[str]()
    places = []
    for i, question in enumerate(everything):
        places.append((seen[question["subject"]], i))
        seen[question["subject"]] += 1
    questions = [everything[i] for place, i in sorted(places) if place < 2]
    assert {q["subject"] for q in questions} == dev.keys() and len(questions) == 2 * 57
    write_mmlu(tmp_path / "mmlu", questions, dev)
    shape = SHAPE.model_copy(update={"vocab": 4096, "context": 8192, "layers": 1})
    tokenizer = train_tokenizer(text_of(everything), shape)
    (tmp_path / "tasks").mkdir()
    ours, theirs, difference, spread = asked_both_ways(
        tmp_path / "mmlu", tmp_path / "tasks", random_model(tokenizer, shape), tokenizer
    )
    assert ours == theirs
    assert difference < 1e-4 < 1e-2 < spread
