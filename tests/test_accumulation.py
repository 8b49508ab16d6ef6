"""A step's rows depend on how many they are, not on how micro-batches, accumulation and ranks cut them up."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from expunge import UnlearnConfig, UnlearnTrainer, UserError
from expunge.data.encode import Encoded
from expunge.data.pairs import Collator, Filler, PairedDataset, PairSampler, Role, Sets
from expunge.modeling.loading import LoraConfig, save
from expunge.objectives import CEU, DPO, FORGET, KL, NLL, NPO, RMU, Anchor, Objective, Unilogit
from tests import forked

Rows = list[dict[str, str]]
CUTS = ((8, 1), (2, 4), (1, 8))


def rows(count: int, first: int = 0) -> Rows:
    return [
        {"question": f"Where was person {i} born?", "answer": "In town " + "x" * (i % 7) + f" {i}."}
        for i in range(first, first + count)
    ]


class Killed(Exception): ...


@pytest.fixture
def train(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Callable[..., dict[str, Any]]:
    """Trains in float64 and gives the parameters by name, and `loss`, the loss of the whole training."""

    def do(
        objective: Objective | None,
        retain: Objective | None,
        cut: tuple[int, int],
        *,
        forget: int = 19,
        keep: int = 23,
        lora: bool = False,
        stop: int | None = None,
        resume: int | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        torch.manual_seed(0)
        trainer = UnlearnTrainer(
            tiny_model(layers=2, hidden=16).double(),
            UnlearnConfig(
                output_dir=str(tmp_path / "run"),
                per_device_train_batch_size=cut[0],
                gradient_accumulation_steps=cut[1],
                **{"num_train_epochs": 2, "learning_rate": 1e-2, "save_strategy": "no", "disable_tqdm": True}
                | settings,
            ),
            objective=objective,
            retain=retain,
            forget_dataset=rows(forget) if objective is not None else (),
            retain_dataset=rows(keep, 100) if retain is not None else (),
            refusals=["I don't know.", "No idea."],
            processing_class=tiny_tokenizer,
            peft_config=LoraConfig(r=2).peft() if lora else None,
        )
        if stop is not None:
            step = trainer.training_step

            def deadly(*words: Any, **keys: Any) -> Any:
                if trainer.state.global_step == stop:
                    raise Killed
                return step(*words, **keys)

            trainer.training_step = deadly
            with pytest.raises(Killed):
                trainer.train()
            return {}
        output = trainer.train(
            resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{resume}") if resume else None
        )
        (last,) = [row for row in trainer.state.log_history if "train_loss" in row]
        assert last["train_loss"] == output.training_loss == output.metrics["train_loss"]
        assert trainer.model is not None
        return {"loss": output.training_loss, **{n: p.detach().clone() for n, p in trainer.model.named_parameters()}}

    return do


def same(some: dict[str, Any], others: dict[str, Any]) -> None:
    """Parameters to 1e-12; what is logged stays in float32."""
    assert some.keys() == others.keys()
    assert some["loss"] == pytest.approx(others["loss"], rel=1e-5)
    for name in some.keys() - {"loss"}:
        assert some[name].dtype in (torch.float64, torch.float32)
        torch.testing.assert_close(some[name], others[name], rtol=0, atol=1e-12)


METHODS: dict[str, tuple[Objective | None, Objective | None, dict[str, Any]]] = {
    "npo+kl": (NPO(), KL(), {}),
    "unilogit": (Unilogit(), None, {}),
    "ceu+nll": (CEU(), NLL(), {}),
    "dpo+nll": (DPO(), NLL(), {}),
    "rmu": (RMU(layer=1), Anchor(layer=1), {}),
    "undial+kl, live": (FORGET["undial"](), KL(), {"reference": "frozen_copy"}),
    "learning": (None, NLL(), {}),
    "few to keep": (NPO(), NLL(), {"keep": 3}),
    "whole steps": (NPO(), KL(), {"forget": 16, "keep": 16}),
    "fewer than a step": (NPO(), KL(), {"forget": 5}),
    "clipped": (NPO(), NLL(), {"max_grad_norm": 0.01, "optim": "sgd"}),
}


@pytest.mark.parametrize("name", METHODS)
def test_how_a_step_is_cut_up_changes_nothing(train: Callable[..., dict[str, Any]], name: str) -> None:
    objective, retain, settings = METHODS[name]
    first, *others = (train(objective, retain, cut, num_train_epochs=1, **settings) for cut in CUTS)
    for other in others:
        same(other, first)


@pytest.mark.parametrize(("stop", "before", "after"), [(1, (2, 4), (8, 1)), (3, (8, 1), (1, 8)), (4, (1, 8), (2, 4))])
def test_a_run_goes_on_with_another_cut(
    train: Callable[..., dict[str, Any]], stop: int, before: tuple[int, int], after: tuple[int, int]
) -> None:
    """Three steps an epoch, the last of them short: stopped within the first, at its end and within the second."""
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "logging_steps": 2}
    whole = train(NPO(), KL(), (8, 1))
    train(NPO(), KL(), before, stop=stop, **settings)
    same(train(NPO(), KL(), after, resume=stop, **settings), whole)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"cut": (4, 1)}, "rows per step was 8 and is 4 now; give as many as then"),
        ({"forget": 18}, "rows was 19 and is 18 now"),
        ({"data_seed": 1}, "seed was 42 and is 1 now"),
    ],
)
def test_another_order_is_refused(train: Callable[..., dict[str, Any]], changed: dict[str, Any], says: str) -> None:
    train(NPO(), KL(), (8, 1), stop=1, save_strategy="steps", save_steps=1)
    with pytest.raises(UserError, match=says):
        train(NPO(), KL(), **{"cut": (8, 1), "resume": 1, **changed})


def test_the_loss_of_a_whole_training_is_what_its_steps_say(
    train: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    found = train(NPO(), NLL(), (2, 4), lora=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in lines if "loss" in row]
    assert len(losses) == 6 and found["loss"] == pytest.approx(sum(losses) / 6, rel=1e-6)


sizes = st.integers(1, 5)


@given(forget=st.integers(1, 40), retain=st.integers(0, 9), size=sizes, steps=sizes, ranks=sizes, epoch=sizes)
def test_ranks_share_every_row_once_and_take_the_same_steps(
    forget: int, retain: int, size: int, steps: int, ranks: int, epoch: int
) -> None:
    """With accelerate's own dealing out of batches, each step is the one that a single process would take."""
    encoded = [Encoded(tuple(range(4 + i % 6)), 1) for i in range(40)]
    sets = Sets(encoded[:forget], encoded[:retain])
    world = size * steps * ranks
    alone = PairSampler(sets, batch_size=world, seed=3)
    shared = PairSampler(sets, batch_size=world, seed=3, ranks=ranks, per_rank=size)
    for sampler in (alone, shared):
        sampler.set_epoch(epoch)
    order, dataset = list(alone), PairedDataset(sets)
    cut: Any = BatchSampler
    shards = [cut(shared, size, drop_last=False) for _ in range(ranks)]
    if ranks > 1:
        shards = [BatchSamplerShard(own, num_processes=ranks, process_index=rank) for rank, own in enumerate(shards)]
    batches: list[list[Any]] = [list(own) for own in shards]
    assert len({len(own) for own in batches}) == 1, "a rank without a batch would wait for the others"
    assert len(shared) == sum(len(batch) for own in batches for batch in own)
    for step in range(0, len(batches[0]), steps):
        seen = [pair for own in batches for batch in own[step : step + steps] for pair in batch if len(pair) == 2]
        first = step * size * ranks
        assert sorted(seen) == sorted(order[first : first + world])
    for batch in (batch for own in batches for batch in own):
        items = [dataset[pair] for pair in batch]
        collated = Collator(sets, 0)(items)
        counted = sum(not isinstance(item, Filler) for item in items)
        assert ("filler" in collated) == (counted == 0)
        assert (collated["role"] == Role.FORGET).sum() == max(1, counted)


RANKS = """
import os, sys, torch
torch.set_num_threads(1)
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from tests.test_accumulation import rows
from expunge import UnlearnConfig, UnlearnTrainer, load, objectives
folder, size, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
found = {}
cases = {"npo+kl": (objectives.NPO(), objectives.KL(), 19), "rmu+nll": (objectives.RMU(layer=1), objectives.NLL(), 17),
         "dpo": (objectives.DPO(), None, 18)}
for name, (objective, retain, count) in cases.items():
    model, tokenizer = load(folder / "model")
    args = UnlearnConfig(output_dir=str(folder / f"run{size}"), per_device_train_batch_size=size, num_train_epochs=2,
                         gradient_accumulation_steps=steps, learning_rate=1e-2, save_strategy="no", disable_tqdm=True,
                         ddp_backend="gloo" if "RANK" in os.environ else None)
    trainer = UnlearnTrainer(model.double(), args, objective=objective, retain=retain, refusals=["No."],
                             forget_dataset=rows(count), retain_dataset=rows(9, 100) if retain else (),
                             processing_class=tokenizer)
    trainer.train()
    whole = trainer.accelerator.unwrap_model(trainer.model)
    found[name] = {n: p.detach().clone() for n, p in whole.named_parameters()}
    found[name]["losses"] = torch.tensor([row["loss"] for row in trainer.state.log_history if "loss" in row])
if trainer.is_world_process_zero():
    torch.save(found, folder / sys.argv[5])
sys.stdout.flush()
if torch.distributed.is_initialized():
    torch.distributed.barrier()  # a rank that leaves first takes the other's sockets with it
    os._exit(0)  # torch's teardown of gloo threads aborts now and then, after everything has been done
"""


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one_process(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    """Every last step is short: it holds three rows, one or two, for two ranks."""
    save(tiny_model(layers=2, hidden=16), tiny_tokenizer, tmp_path / "model")
    (tmp_path / "train.py").write_text(RANKS)
    here = str(Path(__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(tmp_path / "train.py"), str(tmp_path)]
    forked.ranks([*command, "2", "2", here, "two"], count=2, env=environment, timeout=250)
    done = forked.run([*command, "8", "1", here, "one"], capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 0, done.stderr[-6000:]
    found = [torch.load(tmp_path / name) for name in ("two", "one")]
    for method, two in found[0].items():
        one = found[1][method]
        assert len(two["losses"]) == 6
        torch.testing.assert_close(two.pop("losses"), one.pop("losses"), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(two, one, rtol=0, atol=1e-12)
