"""Every objective trains, saves, loads and resumes; the loss is a mean over the global batch, however it is cut."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from expunge import UnlearnConfig, UnlearnTrainer, UserError, load, objectives
from expunge.data.pairs import Collator, PairedDataset, Role
from expunge.modeling.forward import dense_logps, supervised_logps
from expunge.modeling.loading import LoraConfig, save
from expunge.objectives import FORGET, NLL, NPO, RETAIN, RMU, AltPO, Anchor, Needs, Objective, Signals, Unilogit
from expunge.system import manifest
from expunge.training.history import last_checkpoint
from expunge.training.keeping import TrainingDiverged
from tests import forked

Rows = tuple[list[dict[str, str]], list[dict[str, str]]]
Build = Callable[..., UnlearnTrainer]

GOLDEN = Path(__file__).parent / "golden" / "losses.json"
REFUSALS = ["I don't know.", "No idea."]


@pytest.fixture
def build(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, tiny_rows: Rows) -> Build:
    """A trainer on the tiny model; keyword arguments are `UnlearnConfig`'s, but for those of the trainer itself."""

    def make(
        objective: Objective | None = None,
        retain: Objective | None = None,
        *,
        lora: bool = False,
        model: Any = None,
        rows: Rows = tiny_rows,
        **settings: Any,
    ) -> UnlearnTrainer:
        defaults = {"output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 3, "save_strategy": "no"}
        return UnlearnTrainer(
            model if model is not None else tiny_model(),
            UnlearnConfig(**{**defaults, "learning_rate": 1e-2, "num_train_epochs": 1, **settings}),
            objective=objective,
            retain=retain,
            forget_dataset=rows[0] if objective is not None else (),
            retain_dataset=rows[1] if retain is not None else (),
            refusals=REFUSALS,
            processing_class=tiny_tokenizer,
            peft_config=LoraConfig(r=2).peft() if lora else None,
        )

    return make


def preferring(rows: Rows) -> Rows:
    """The same rows, of which those to forget say which answer they prefer."""
    forget = [{"prompt": row["question"], "chosen": "In a village.", "rejected": row["answer"]} for row in rows[0]]
    return forget, rows[1]


def losses(trainer: UnlearnTrainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def whole_batch(trainer: UnlearnTrainer) -> dict[str, torch.Tensor]:
    dataset = PairedDataset(trainer.sets)
    return Collator(trainer.sets, 1)([dataset[(i, i)] for i in range(len(trainer.sets.forget))])


def matrix() -> list[Any]:
    """Every forget objective alone and with each retain objective, full; with nll under LoRA too."""
    own = {name: cls(layer=1) if name == "rmu" else cls() for name, cls in FORGET.items()}
    pairs: list[tuple[Objective, Objective | None, bool]] = []
    for objective in own.values():
        pairs += [(objective, None, False), (objective, NLL(), False), (objective, NLL(), True)]
        pairs.append((objective, RETAIN["kl"](), False))
    pairs += [(own["rmu"], Anchor(layer=1), lora) for lora in (False, True)]
    pairs += [(own["jensun"], own["jensun"].own_retain, lora) for lora in (False, True)]
    pairs.append((own["rmu"], RETAIN["kl"](), True))
    pairs.append((Unilogit(min_surprisal=3.0, direction="forward"), NLL(), False))
    names = ["-".join([type(o).__name__, type(r).__name__, "lora" if lora else "full"]) for o, r, lora in pairs]
    return [pytest.param(*pair, id=name) for pair, name in zip(pairs, names, strict=True)]


def test_rows_without_a_preferred_answer_are_refused(build: Build, tiny_rows: Rows) -> None:
    one = (preferring((tiny_rows[0][:1], []))[0] + list(tiny_rows[0][1:]), tiny_rows[1])
    with pytest.raises(UserError, match="altpo prefers another answer to each forget row, and row 1 has none"):
        build(AltPO(), NLL(), rows=one)


@pytest.mark.parametrize(("objective", "retain", "lora"), matrix())
def test_train_save_load(
    build: Build, tmp_path: Path, tiny_tokenizer: Any, tiny_rows: Rows, objective: Objective, retain: Objective | None,
    lora: bool,
) -> None:  # fmt: skip
    rows = tiny_rows if objective.wrong_answers != "preferred" else preferring(tiny_rows)
    trainer = build(objective, retain, lora=lora, rows=rows)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert all(abs(value) < 1e6 for value in losses(trainer))
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    if isinstance(objective, RMU):
        assert {name.split("layers.")[1][0] for name in moved} <= {"0", "1"}  # layers l−2..l, and nothing outside
    if lora:
        assert all("lora_" in name for name in moved)
        return  # saved and loaded below, on a base that stands on disk
    save(trainer.model, tiny_tokenizer, tmp_path / "saved")
    loaded, _ = load(tmp_path / "saved")
    batch = whole_batch(trainer)
    arguments = batch["input_ids"], batch["attention_mask"], batch["labels"]
    trainer.model.eval()
    torch.testing.assert_close(supervised_logps(loaded, *arguments), dense_logps(trainer.model, *arguments))


def test_an_adapter_saves_loads_and_leaves_its_base_alone(
    build: Build, tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    save(tiny_model(), tiny_tokenizer, tmp_path / "base")
    model, _ = load(tmp_path / "base")
    trainer = build(NPO(), NLL(), lora=True, model=model)
    trainer.train()
    save(trainer.model, tiny_tokenizer, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    loaded, _ = load(tmp_path / "adapter")
    batch = whole_batch(trainer)
    arguments = batch["input_ids"], batch["attention_mask"], batch["labels"]
    trainer.model.eval()
    torch.testing.assert_close(supervised_logps(loaded, *arguments), supervised_logps(trainer.model, *arguments))
    assert isinstance(trainer.model, PeftModel)
    with trainer.model.disable_adapter(), torch.no_grad():  # with gradients, a frozen head takes a way of its own
        base = supervised_logps(trainer.model, *arguments)
        assert torch.equal(base, supervised_logps(tiny_model().eval(), *arguments))


@pytest.mark.parametrize("objective", [Unilogit(), NPO()], ids=["per token", "per sequence"])
def test_the_loss_is_a_mean_over_the_global_batch(build: Build, objective: Objective) -> None:
    """Σ over rows / count over rows, from one forward for both sides, equals one forward a row."""
    trainer = build(objective, NLL(weight=0.5))
    batch = whole_batch(trainer)
    counts = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    together = trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts)
    apart = torch.zeros(())
    for i in range(len(batch["row"])):
        row = {key: value[i : i + 1] for key, value in batch.items()}
        apart = apart + trainer.compute_loss(trainer.model, row, num_items_in_batch=counts)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)


def test_padding_and_order_change_nothing(build: Build) -> None:
    trainer = build(Unilogit(), NLL())
    batch = whole_batch(trainer)
    counts = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    first = trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts)
    wider = {
        key: torch.nn.functional.pad(value, (0, 7), value={"labels": -100}.get(key, 0)) if value.dim() == 2 else value
        for key, value in batch.items()
    }
    torch.testing.assert_close(trainer.compute_loss(trainer.model, wider, num_items_in_batch=counts), first)
    forget = int((batch["role"] == Role.FORGET).sum())
    order = torch.cat([torch.arange(forget).flip(0), torch.arange(forget, len(batch["row"]))])
    shuffled = {key: value[order] for key, value in batch.items()}
    torch.testing.assert_close(trainer.compute_loss(trainer.model, shuffled, num_items_in_batch=counts), first)


@pytest.mark.parametrize(
    ("objective", "retain"),
    [(NPO(), NLL()), (NPO(), objectives.KL()), (objectives.JensUn(), objectives.JSD())],
    ids=["npo+nll", "npo+kl", "jensun"],
)
def test_accumulation_is_the_same_as_a_larger_batch(
    build: Build, tiny_rows: Rows, objective: Objective, retain: Objective
) -> None:
    """One step over all forget rows: 6 × 1 or 1 × 6; with as many retain rows, both hold the same rows."""
    rows = tiny_rows[0], tiny_rows[1][:6]
    ends = []
    for size, steps in ((6, 1), (1, 6)):
        trainer = build(
            objective, retain, rows=rows, per_device_train_batch_size=size, gradient_accumulation_steps=steps,
            optim="sgd",
        )  # fmt: skip
        trainer.train()
        ends.append((losses(trainer), {n: p.detach().clone() for n, p in trainer.model.named_parameters()}))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-5)
    for name, value in ends[0][1].items():
        torch.testing.assert_close(value, ends[1][1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(
    build: Build, tmp_path: Path, broken: float
) -> None:
    trainer: Any = None  # when it is made, it tries the loss

    class Bursting(NLL):
        """Fine for two steps."""

        def loss(self, s: Signals) -> torch.Tensor:
            return super().loss(s) * (broken if trainer is not None and trainer.state.global_step >= 2 else 1.0)

    trainer = build(Unilogit(), Bursting(), save_strategy="steps", save_steps=1, num_train_epochs=3, logging_steps=10)
    with pytest.raises(TrainingDiverged, match=rf"the retain term became {broken} at step 3"):
        trainer.train()
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint is not None and checkpoint.name == "checkpoint-2"
    model, _ = load(checkpoint)
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_half_written_checkpoint_is_passed_over_and_a_strange_one_is_refused(tmp_path: Path) -> None:
    for step in (9, 10, 20, 30):
        folder = tmp_path / f"checkpoint-{step}"
        manifest.begin(folder)
        (folder / "trainer_state.json").write_text("{}")
        if step <= 20:
            manifest.seal(folder)
    found = last_checkpoint(tmp_path)
    assert found is not None and found.name == "checkpoint-20"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-20", "checkpoint-9"]
    assert last_checkpoint(tmp_path / "nothing") is None
    (tmp_path / "checkpoint-40").mkdir()  # by another program, or its manifest is gone
    (tmp_path / "checkpoint-40" / "trainer_state.json").write_text("{}")
    with pytest.raises(UserError, match=r"checkpoint-40 has no manifest.json, which is written last; delete"):
        last_checkpoint(tmp_path)


@pytest.mark.parametrize("stop", [1, 4, 5])
def test_resuming_gives_the_losses_of_an_uninterrupted_run(build: Build, tmp_path: Path, stop: int) -> None:
    """Stopped as by SIGKILL: at step `stop`, without a word, after which a new process goes on."""

    class Killed(Exception): ...

    trainer: Any = None  # when it is made, it tries the loss

    class Deadly(NLL):
        def loss(self, s: Signals) -> torch.Tensor:
            if trainer is not None and trainer.state.global_step == stop:
                raise Killed
            return super().loss(s)

    settings: dict[str, Any] = {"num_train_epochs": 4, "save_strategy": "epoch"}
    whole = build(NPO(), NLL(), output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    trainer = build(NPO(), Deadly(), **settings)
    with pytest.raises(Killed):
        trainer.train()
    checkpoint = last_checkpoint(tmp_path / "run")
    again = build(NPO(), NLL(), **settings)
    again.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "run")
    ]
    steps = [[(row["step"], round(row["loss"], 6)) for row in part if "loss" in row] for part in rows]
    assert steps[0] == steps[1]
    assert [step for step, _ in steps[0]] == list(range(1, 9))


@pytest.mark.parametrize("method", ["unilogit+nll", "npo+kl", "undial+nll"])
def test_golden_losses(build: Build, method: str) -> None:
    """Twenty steps give the numbers in git. After a change that is meant to alter them: EXPUNGE_GOLDEN=write pytest."""
    names = objectives.split_method(method)
    trainer = build(
        FORGET[names["forget"]["name"]](), RETAIN[names["retain"]["name"]](), max_steps=20, learning_rate=3e-3
    )
    trainer.train()
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("EXPUNGE_GOLDEN") == "write":
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps({**golden, method: [round(x, 6) for x in losses(trainer)]}, indent=1) + "\n")
        return
    assert losses(trainer) == pytest.approx(golden[method], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ({"objective": Unilogit()}, "the forget set has no rows"),
        ({"objective": Unilogit(), "retain": NLL(), "forget_dataset": [{"text": "a b"}]}, "has no rows to keep"),
        ({"objective": objectives.DPO(), "forget_dataset": [{"question": "a", "answer": "b"}]}, "no refusals"),
        (
            {"objective": objectives.DPO(), "forget_dataset": [{"text": "a b"}], "refusals": ["no"]},
            "raw text asks nothing",
        ),
        (
            {"objective": RMU(layer=3), "forget_dataset": [{"text": "a b"}]},
            "layer 3 of RMU is out of range; the model has layers 0 to 2",
        ),
        ({"objective": Unilogit(), "forget_dataset": [{"text": "a " * 200}]}, "longer than 128 tokens"),
        (
            {
                "objective": Unilogit(),
                "retain": NLL(),
                "forget_dataset": [{"text": "a b"}, {"text": "c"}],
                "retain_dataset": [{"text": "d"}, {"text": "A  b"}],
            },
            "also",
        ),
    ],
    ids=["nothing to forget", "nothing to keep", "no refusals", "refusing text", "layer", "too long", "overlap"],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, terms: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        UnlearnTrainer(
            tiny_model(), UnlearnConfig(output_dir=str(tmp_path / "run")), processing_class=tiny_tokenizer, **terms
        )
    assert not (tmp_path / "run").exists()


def test_only_what_is_needed_is_computed(build: Build) -> None:
    """RMU with its anchor never reaches the head; likelihood objectives never ask the reference."""
    trainer = build(RMU(layer=0), Anchor(layer=0))
    trainer.model.get_submodule("lm_head").register_forward_pre_hook(lambda *_: pytest.fail("the head ran"))
    trainer.train()
    assert build(Unilogit(), NLL()).reference is None
    assert Needs(logp=True).reference is False


TWO_RANKS = """
import json, os, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from expunge import UnlearnConfig, UnlearnTrainer, load, objectives
folder, size = Path(sys.argv[1]), int(sys.argv[2])
rows = json.loads((folder / "rows.json").read_text())
model, tokenizer = load(folder / "model")
for name, retain in {"nll": objectives.NLL(), "kl": objectives.KL(), "budget": objectives.NLL(budget=5.0)}.items():
    args = UnlearnConfig(output_dir=str(folder / f"run{size}"), per_device_train_batch_size=size, max_steps=4,
                         learning_rate=1e-2, save_strategy="no", optim="sgd", disable_tqdm=True,
                         ddp_backend="gloo" if "RANK" in os.environ else None)
    trainer = UnlearnTrainer(model, args, objective=objectives.NPO(), retain=retain, forget_dataset=rows[0],
                             retain_dataset=rows[1], processing_class=tokenizer)
    trainer.train()
    if trainer.is_world_process_zero():
        total = sum(p.double().abs().sum().item() for p in trainer.model.parameters())
        (folder / f"{name}{size}").write_text(repr(total))
sys.stdout.flush()
if torch.distributed.is_initialized():
    torch.distributed.barrier()  # a rank that leaves first takes the other's sockets with it
    os._exit(0)  # torch's teardown of gloo threads aborts now and then, after everything has been done
"""


@pytest.mark.slow
def test_two_ranks_are_one_rank_with_twice_the_batch(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, tiny_rows: Rows
) -> None:
    save(tiny_model(), tiny_tokenizer, tmp_path / "model")
    (tmp_path / "rows.json").write_text(json.dumps([tiny_rows[0], tiny_rows[1][:6]]))
    (tmp_path / "train.py").write_text(TWO_RANKS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(tmp_path / "train.py"), str(tmp_path)]
    forked.ranks([*command, "1"], count=2, env=environment, timeout=250)
    done = forked.run([*command, "2"], capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 0, done.stderr[-6000:]
    for name in ("nll", "kl", "budget"):
        two, one = (float((tmp_path / f"{name}{size}").read_text()) for size in (1, 2))
        assert two == pytest.approx(one, rel=1e-6)
