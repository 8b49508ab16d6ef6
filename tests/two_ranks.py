"""What `test_sharded.py` has two ranks do and compares with one process: `torchrun two_ranks.py FOLDER`.

Finds the model in FOLDER/model and leaves what was found in FOLDER/found.json. One rank alone goes on from the sharded
checkpoint of two, and leaves its losses in FOLDER/back.json.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from peft import get_peft_model
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from expunge import UnlearnConfig, UnlearnTrainer, load, objectives
from expunge.bench.training import assistant
from expunge.data.benchmark import Benchmark, Question
from expunge.data.encode import Encoded
from expunge.data.pairs import Collator, Role, Sets
from expunge.evals import requests
from expunge.evals.evaluation import evaluate
from expunge.evals.retrained import Distance, Retrained
from expunge.modeling.forward import decoder_layers
from expunge.modeling.loading import LoraConfig, save
from expunge.objectives import FORGET, RETAIN, ULD, Uniform
from expunge.objectives.base import Share
from expunge.recipe.shipped import launchers
from expunge.system import ranks
from expunge.training.reference import build_reference
from expunge.training.signals import gather_signals

DISTRIBUTIONS = {"full": ("cached_hidden", "frozen_copy"), "lora": ("cached_hidden", "adapter_off", "frozen_copy")}

CASES = {
    "unilogit+nll": {"full": ("auto",), "lora": ("auto",)},
    "npo+nll": {"full": ("cached_logps",), "lora": ("cached_logps",)},
    "npo+kl": DISTRIBUTIONS,
    "undial+kl": {"full": ("cached_hidden",), "lora": ("adapter_off",)},
    "rmu+anchor": {"full": ("cached_hidden", "frozen_copy")},
    "uld": {"assistant": ("auto",)},
}
"""Objectives, what of the model trains, and where the starting model's signals come from."""

ROWS = [{"question": f"Where was person {i} born?", "answer": f"In town {'x' * (i % 4)} {i}."} for i in range(20)]


def random_rows(count: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    return [Encoded(tuple(torch.randint(5, 200, (9 + i,), generator=generator).tolist()), 4) for i in range(count)]


def steps(model: Any, method: str, trains: str, kind: Any, *, sharded: bool) -> tuple[list[torch.Tensor], float]:
    """The weights that two steps of SGD leave, whole, and how far the one that moved most has moved."""
    rows = random_rows(8)
    sets = Sets(forget=rows[:4], retain=rows[4:])
    torch.manual_seed(0)  # adapters begin at random
    objective: Any = ULD()
    retain: Any = Uniform(weight=5.0)
    if method == "uld":
        model = assistant(model)
    else:
        forget, kept = method.split("+")
        objective = FORGET[forget](**({"layer": 1} if forget == "rmu" else {}))
        retain = RETAIN[kept](**({"layer": 1} if kept == "anchor" else {}))
    if trains == "lora":
        model = get_peft_model(model, LoraConfig(r=2).peft())
    if trains != "full":  # an adapter that does nothing yet would make its reference the model itself
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.05)
    needs = {Role.FORGET: objective.needs, Role.REFUSAL: objectives.Needs(), Role.RETAIN: retain.needs}
    wanted = objective.needs | retain.needs
    with model.disable_adapter() if trains == "lora" else nullcontext():
        reference = build_reference(model, needs, sets, pad_token_id=0, kind=kind) if wanted.reference else None
    began = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    if sharded:
        for layer in decoder_layers(model):
            fully_shard(layer)
        fully_shard(model)
    mine = ranks.share(range(4)) if sharded else range(4)
    batch = Collator(sets, 0)([[(Role.FORGET, i), (Role.RETAIN, i)] for i in mine])
    count = {role: sum(len(e) - e.start for e in sets.of(role)) for role in (Role.FORGET, Role.RETAIN)}
    trained = [p for p in model.parameters() if p.requires_grad]
    for _ in range(2):
        terms = ((objective, Role.FORGET), (retain, Role.RETAIN))
        shares = {r: Share(o, count[r] if o.per == "token" else 4) for o, r in terms}
        signals = gather_signals(model, batch, needs, reference, None, shares)
        loss = torch.stack([s.objective.weight * s.term(signals[r]) for r, s in shares.items()]).sum()
        (loss * (ranks.count() if sharded else 1)).backward()  # gradients are averaged over ranks
        with torch.no_grad():
            for p in trained:
                if p.grad is not None:
                    p -= 0.1 * p.grad
                    p.grad = None
    ended = [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in trained]
    moved = max((a - b).abs().max().item() for a, b in zip(began, ended, strict=True))
    assert moved > 1e-4
    return ended, moved


@contextmanager
def fsdp() -> Iterator[None]:
    """The environment that accelerate's launcher makes of our config."""
    arguments = launch_command_parser().parse_args(["--config_file", str(launchers()["fsdp2"]), "script.py"])
    made = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    before = dict(os.environ)
    os.environ.update({k: v for k, v in made.items() if k.startswith(("ACCELERATE_", "FSDP_"))})
    yield
    os.environ.clear()
    os.environ.update(before)


def trainer(folder: Path, *, lora: bool = False, sharded: bool = False, batch: int = 4) -> UnlearnTrainer:
    """Six steps of four rows each, however many ranks there are; a checkpoint after the third."""
    model, tokenizer = load(folder.parent / "model", dtype="float32")
    args = UnlearnConfig(
        output_dir=str(folder),
        per_device_train_batch_size=batch // ranks.count(),
        num_train_epochs=3,
        learning_rate=1e-3,
        save_strategy="steps",
        save_steps=3,
        save_total_limit=None,
        disable_tqdm=True,
        ddp_backend="gloo" if ranks.count() > 1 or sharded else None,
    )
    if sharded:  # accelerate has FSDP for GPUs only; told that these are such, it does on a CPU what it does there
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    torch.manual_seed(0)
    return UnlearnTrainer(
        model,
        args,
        objective=objectives.NPO(),
        retain=objectives.KL(),
        forget_dataset=ROWS[:8],
        retain_dataset=ROWS[8:],
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2).peft() if lora else None,
    )


def losses(trainer: UnlearnTrainer, *, resume: Path | None = None) -> list[tuple[float, float, float]]:
    """Of every step that it takes: the loss and both its terms."""
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume / "checkpoint-3"))
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return [(row["loss"], row["forget_loss"], row["retain_loss"]) for row in rows]


def evaluated(model: Any, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Every metric and record of a benchmark, and how far the model is from what it was."""
    questions = [
        Question(row["question"], row["answer"], (f"In village {i}.", f"Under a bridge {i}."), None, f"Town {i}.")
        for i, row in enumerate(ROWS[:10])
    ]
    benchmark = Benchmark("tiny", "half", [], [], {"forget": questions[:6], "retain": questions[6:]})
    gold = Retrained(load(folder / "model")[0], tokenizer, questions[:6], {})
    found = evaluate(model, tokenizer, benchmark, distance=Distance(gold), max_new_tokens=12, progress=False)
    return {"metrics": found.metrics, "records": found.records}


@contextmanager
def read(model: Any) -> Iterator[list[int]]:
    """How many rows each forward has."""
    rows: list[int] = []
    hook = model.register_forward_pre_hook(lambda _m, _a, given: rows.append(len(given["input_ids"])), with_kwargs=True)
    yield rows
    hook.remove()


def of_each(number: int) -> list[int]:
    """The number that each rank has."""
    return [own for _, own in sorted(ranks.merged({ranks.rank(): number}).items())]


def scores(model: Any) -> tuple[list[float], list[int]]:
    """Log-probabilities of answers, and how many rows each rank read for them."""
    requests.score(model, random_rows(20), token_budget=64, progress=False)  # measures the model's ways, once
    with read(model) as rows:
        found = requests.score(model, random_rows(20), token_budget=64, progress=False)
    return [score.total for score in found], of_each(sum(rows))


def asked(model: Any) -> list[list[int]]:
    """How many rows each rank asks about for a cached reference of twenty: the first time, and once it is on disk."""
    sets = Sets(forget=random_rows(20))
    needs = {Role.FORGET: objectives.KL().needs, Role.REFUSAL: objectives.Needs(), Role.RETAIN: objectives.Needs()}
    counts = []
    for _ in range(2):
        with read(model) as rows:
            build_reference(model, needs, sets, pad_token_id=0, kind="cached_hidden", batch_size=4)
        counts.append(of_each(sum(rows)))
    return counts


def main(folder: Path) -> None:
    if ranks.count() == 1:
        with fsdp():
            back = losses(trainer(folder / "back", sharded=True), resume=folder / "sharded")
        (folder / "back.json").write_text(json.dumps(back))
        return
    found: dict[str, Any] = {"steps": [], "ranks": ranks.count()}
    for method, ways in CASES.items():
        for trains, kinds in ways.items():
            for kind in kinds:
                do = partial(steps, method=method, trains=trains, kind=kind)
                whole, moved = do(load(folder / "model")[0].double(), sharded=False)
                parts, _ = do(load(folder / "model")[0].double(), sharded=True)
                off = max((a - b).abs().max().item() for a, b in zip(whole, parts, strict=True))
                found["steps"].append([method, trains, kind, off / moved])
    model, tokenizer = load(folder / "model")
    found["scores"], found["read"] = scores(model)
    found["asked"] = asked(model)
    with fsdp():
        sharded = trainer(folder / "sharded", sharded=True)
        found["sharded"] = losses(sharded)
        found["sharded evaluation"] = evaluated(sharded.model, tokenizer, folder)
        whole = sharded.whole_model()
    assert ranks.is_sharded(sharded.model) and not ranks.is_sharded(whole)
    found["shared evaluation"] = evaluated(whole, tokenizer, folder)
    found["lora"] = losses(trainer(folder / "lora", lora=True))
    found["one to two"] = losses(trainer(folder / "lora on", lora=True), resume=folder / "one")
    if ranks.first():
        save(whole, tokenizer, folder / "whole")
        (folder / "found.json").write_text(json.dumps(found))
    ranks.wait()


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks.join()
    main(Path(sys.argv[1]))
    os._exit(0)  # torch's teardown of gloo threads aborts now and then, after everything has been done
