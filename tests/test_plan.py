"""A dry run: its numbers are what the run then does, and nothing is written."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from expunge.cli.main import main
from expunge.errors import UserError
from expunge.modeling import loading
from expunge.pipeline.plan import plan
from expunge.pipeline.run import run
from expunge.recipe.parsing import combinations, load_recipe
from expunge.training import memory
from expunge.training.arguments import UnlearnConfig
from tests import forked

KEYS = (
    ("benchmark", "{name: fable, authors: 10, facts: 3, split: forget20}"),
    ("model.scratch", "{layers: 2, hidden: 16, heads: 2, vocab: 400, context: 96}"),
    ("finetune.epochs", "1"),
    ("train.num_train_epochs", "2"),
    ("train.per_device_train_batch_size", "4"),
    ("evaluate", "{max_new_tokens: 4, limit: 2, each_epoch: off}"),
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))


def recipe(methods: str, **keys: str) -> Any:
    return load_recipe(None, [*KEYS, ("methods", methods), ("out", "out"), *keys.items()])


def test_it_says_what_is_then_done() -> None:
    chosen = recipe("[npo+nll, {forget: {name: uld, epochs: 1, r: 2}}]")
    rows = plan(chosen)
    assert not Path("out").exists()
    run(chosen)
    for row in rows:
        logged = Path("out", row["method"], "metrics.jsonl").read_text().splitlines()
        assert max(json.loads(line)["step"] for line in logged) == row["steps"]
    for row in rows:
        assert row["memory_mib"] == pytest.approx(sum(row["memory"].values()))
    npo, uld = rows
    assert (npo["forget_rows"], npo["retain_rows"]) == (6, 24)
    assert npo["steps"] == 2 * math.ceil(6 / 4) and npo["parameters"] == npo["trainable"]
    assert uld["forget_rows"] == 6 + 6 * 4 and uld["trainable"] < npo["trainable"] / 4
    assert uld["memory_mib"] < npo["memory_mib"]


@pytest.mark.parametrize("method", ["npo+kl", "dpo+nll", "rmu", "offset-npo+nll", "uld_distilled"])
def test_every_kind_of_method_has_a_plan(method: str) -> None:
    (row,) = plan(recipe(f"[{method}]", **{"method.forget.layer": "1"} if method == "rmu" else {}))
    assert set(row["memory"]) == {"weights", "gradients", "optimizer", "activations", "logits", "reference"}
    assert min(row["memory"].values()) >= 0 and row["memory"]["weights"] > 0 and row["memory"]["activations"] > 0
    assert row["memory"]["reference"] > 0


def test_the_parts_follow_the_recipe() -> None:
    def parts(method: str = "npo+kl", **keys: str) -> dict[str, float]:
        return plan(recipe(f"[{method}]", **keys))[0]["memory"]

    usual = parts()
    assert usual["gradients"] == pytest.approx(usual["weights"], rel=0.01)
    assert usual["optimizer"] == pytest.approx(2 * usual["weights"], rel=0.01)
    assert parts("ga+nll")["reference"] == 0 < usual["reference"]
    assert parts(**{"train.reference": "frozen_copy"})["reference"] == usual["weights"]
    assert parts(**{"train.optim": "sgd"})["optimizer"] == 0
    assert parts(**{"train.activation_checkpointing": "true"})["activations"] < 0.9 * usual["activations"]
    lora = parts(**{"model.lora": "{r: 2}"})
    assert lora["gradients"] < 0.2 * usual["gradients"] and lora["reference"] < usual["reference"]


@pytest.mark.parametrize("optim", ["adamw_torch_8bit", "adamw_torch_4bit", "adamw_8bit", "lion_8bit"])
def test_few_bits_are_those_that_the_optimizer_holds(optim: str) -> None:
    """The optimizer itself takes a step; its tables of 256 values a tensor are not counted."""
    size = {"model.scratch": "{layers: 1, hidden: 192, heads: 2, vocab: 400, context: 96}"}
    row = plan(recipe("[ga]", **size, **{"train.optim": optim}))[0]
    kind, options = Trainer.get_optimizer_cls_and_kwargs(UnlearnConfig(output_dir="out", optim=optim))
    weight = torch.nn.Parameter(torch.randn(256, 1024))
    optimizer = kind([weight], **options)
    if optim.startswith("adamw_torch"):  # its step is compiled, which takes a minute; the state is there before
        state = [optimizer._new_buffer(weight, signed) for signed in (True, False)]
    else:
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        state = [x for x in optimizer.state[weight].values() if isinstance(x, torch.Tensor)]
    held = sum(map(_held, state)) / weight.numel()
    assert row["memory"]["optimizer"] * memory.MIB / row["trainable"] == pytest.approx(held, rel=0.02)


def _held(x: Any) -> int:
    parts = x.__tensor_flatten__()[0] if hasattr(x, "__tensor_flatten__") else []
    return sum(_held(getattr(x, part)) for part in parts) if parts else x.nbytes


def test_four_bits_weigh_what_is_said() -> None:
    size = {"model.scratch": "{layers: 1, hidden: 192, heads: 2, vocab: 400, context: 96}"}
    run(recipe("[ga]", **size))
    model, _ = loading.load("out/model")
    parts = (
        recipe("[ga]", **size, **{"model.lora": "{r: 2}"}),
        recipe("[ga]", **size, **{"model.lora": "{r: 2, quantize: nf4}"}),
    )
    whole, quantized = (plan(own)[0]["memory"]["weights"] * memory.MIB for own in parts)
    small, _ = loading.load_for_training("out/model", lora=loading.LoraConfig(quantize="nf4"))
    scales = [p.quant_state for p in small.parameters() if hasattr(p, "quant_state")]
    held = sum(s.absmax.nbytes + s.state2.absmax.nbytes for s in scales)
    loaded = sum(p.nbytes for p in model.parameters()) - sum(p.nbytes for p in small.parameters()) - held
    assert whole - quantized == pytest.approx(loaded, rel=0.02)


def test_four_bits_are_trained_on() -> None:
    """An adapter of more dimensions than a packed weight has columns."""
    keys = {"model.scratch": "{layers: 1, hidden: 192, heads: 2, vocab: 400, context: 96}"}
    rows = run(recipe("[npo+kl]", **keys, **{"model.lora": "{r: 4, quantize: nf4}"}))
    assert {row["method"] for row in rows} >= {"npo+kl"}


MEASURED = """
import gc, json, sys
from pathlib import Path

from expunge.system import machine
from expunge.pipeline.inputs import load_benchmark
from expunge.pipeline.run import make_trainer
from expunge.recipe.parsing import load_recipe
from expunge.pipeline.plan import plan

def train(model):
    keys = [("model", model), ("forget", "forget.jsonl"), ("retain", "retain.jsonl"), ("method", "npo+kl")]
    keys += [("train.max_steps", "2"), ("train.per_device_train_batch_size", "2"), ("train.save_strategy", "no")]
    chosen = load_recipe(None, [*keys, ("evaluate.each_epoch", "off"), ("threads", "1")])
    training = make_trainer(chosen, chosen.methods[0], load_benchmark(chosen), model, Path("out"), evaluate=None)
    training.trainer.train()
    return plan(chosen)[0]

train("small")  # what libraries hold from their first use on
gc.collect()
before = machine.resident()
with machine.peak_memory() as peak:
    row = train("large")
print(json.dumps({"measured": peak.mib and peak.mib - before, "estimated": row["memory_mib"]}))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_estimate_is_what_a_training_takes(tiny_tokenizer: Any) -> None:
    """Within 15 % of the peak of a process beyond what it held before, 46 million weights in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    common: dict[str, Any] = {"vocab_size": 2000, "max_position_embeddings": 128, "eos_token_id": 0, "pad_token_id": 1}
    for name, hidden, layers in (("small", 32, 2), ("large", 768, 6)):
        size: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": 8 * hidden // 3}
        config = LlamaConfig(
            **common, **size, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4, bos_token_id=None
        )
        LlamaForCausalLM(config).save_pretrained(name)
        tiny_tokenizer.save_pretrained(name)
    for name, count in (("forget", 4), ("retain", 8)):
        rows = [{"question": f"Where was {name} {i} born?", "answer": f"In town {i}."} for i in range(count)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = forked.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    if found["measured"] is None or torch.cuda.is_available():
        pytest.skip("the peak of a process's memory can't be measured here")
    assert found["estimated"] == pytest.approx(found["measured"], rel=0.15)


def test_what_the_run_would_refuse_is_refused() -> None:
    with pytest.raises(UserError, match="2 layers can't be cut from a model of 2"):
        plan(recipe("[{forget: {name: uld, layers: 2}}]"))


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for key, value in KEYS for word in (f"--{key}", value)]
    over = ["--methods", "[ga]", "--over", "{seed: [0, 1]}"]
    assert main(["run", "--dry-run", "--json", *words, *over]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert main(["run", "--dry-run", *words, *over]) == 0
    assert "ga" in capsys.readouterr().out and not Path("runs").exists()


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "tofu/scratch/forget10.yaml" in [row["recipe"] for row in found]
    assert all(row["what"] for row in found)
    assert main(["recipes"]) == 0


# -- every combination of values -------------------------------------------------------------------------------------


def test_over_runs_each_and_reports_on_all() -> None:
    from expunge.pipeline.run import run_all

    chosen = recipe("[ga]", over="{seed: [0, 1], benchmark.split: [forget10, forget20]}")
    names = [name for name, _ in combinations(chosen)]
    assert names == [f"seed={seed},split={split}" for seed in (0, 1) for split in ("forget10", "forget20")]
    rows = run_all(chosen)
    assert len(rows) == 4 * 3 and {row["split"] for row in rows} == {"forget10", "forget20"}
    page = Path("out/results.md").read_text()
    assert "fable · mean of" in page and Path("out/report.html").exists()
    with pytest.raises(UserError, match="already holds a run"):
        run_all(chosen)
    before = Path("out", names[0], "results.json").read_bytes()
    assert run_all(chosen, resume=True) == rows
    assert Path("out", names[0], "results.json").read_bytes() == before


def test_two_at_a_time_give_the_same() -> None:
    from expunge.pipeline.run import run_all

    chosen = recipe("[ga]", over="{seed: [0, 1]}")
    with forked.forking():
        rows = run_all(chosen, workers=2)
    again = run_all(chosen.model_copy(update={"out": Path("again")}))
    changing = ("seconds", "peak_memory_mib", "trajectory", "versions", "date")
    assert [{k: v for k, v in row.items() if k not in changing} for row in rows] == [
        {k: v for k, v in row.items() if k not in changing} for row in again
    ]
    assert Path("out/report.html").exists()
    Path("out/seed=1/results.json").write_text("no json")
    with pytest.raises(UserError, match=r"results\.json"), forked.forking():
        run_all(chosen, resume=True, workers=2)
    with pytest.raises(UserError, match="--workers: a single run uses one worker"):
        run_all(recipe("[ga]"), workers=2)
    with pytest.raises(UserError, match="--workers must be at least 1, got 0"):
        run_all(chosen, workers=0)


def test_values_that_go_together() -> None:
    chosen = recipe("[ga]", over="{world: [{benchmark.seed: 1, seed: 1}, {benchmark.seed: 2, seed: 2}]}")
    found = [(name, own.seed, own.benchmark.written()["seed"]) for name, own in combinations(chosen) if own.benchmark]
    assert found == [("world=1", 1, 1), ("world=2", 2, 2)]


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ("{sed: [0]}", "over: unknown key 'sed'. Did you mean 'seed'"),
        ("{seed: [0, -1]}", "over: seed must be at least 0, got -1"),
        ("{seed: []}", "over"),
        ("{seed: 3}", "over"),
    ],
)
def test_over_is_checked_before_anything_begins(over: str, says: str) -> None:
    from expunge.pipeline.run import run_all

    with pytest.raises(UserError, match=says):
        run_all(recipe("[ga]", over=over))
    assert not Path("out").exists()
