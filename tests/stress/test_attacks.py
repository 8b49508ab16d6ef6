"""Each attack on a model that learnt some rows, and on one that did not."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expunge.benchmarks import fable
from expunge.data.benchmark import Benchmark
from expunge.errors import UserError
from expunge.modeling.loading import load
from expunge.modeling.scratch import ScratchConfig
from expunge.stress import quantization as rounding
from expunge.stress.attack import Victim
from expunge.stress.outcome import Outcome
from expunge.stress.quantization import quantization, round_weights
from expunge.stress.relearning import lessons, parted, relearning
from expunge.stress.sampling import sampling
from expunge.stress.wording import wording
from expunge.training.targets import FinetuneConfig, Lesson, Nothing, taught

rounds = pytest.mark.skipif(find_spec("gguf") is None, reason="needs the extra expunge[gguf]")

SCRATCH = ScratchConfig(layers=1, hidden=64, heads=2, vocab=400, context=96)


@pytest.fixture(scope="module")
def world() -> Benchmark:
    return fable.load(authors=10, facts=3, split="forget20")


@pytest.fixture(scope="module")
def victims(world: Benchmark, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Victim]:
    """`target` learnt everything, `retrained` all but the forget rows."""
    torch.set_num_threads(1)
    finetune = FinetuneConfig(epochs=30, learning_rate=4e-3, batch_size=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        start = Nothing(SCRATCH, world.learnt)
        rows = {"target": world.learnt, "retrained": [*world.retain, *world.utility]}
        paths = {name: taught(Lesson(of, start, finetune, 0, name)) for name, of in rows.items()}
    return {name: Victim(lambda path=path: load(path), world, quick=True) for name, path in paths.items()}


def known(outcome: Outcome) -> list[float]:
    return [point.known for point in outcome.points]


@pytest.mark.parametrize("attack", [relearning, pytest.param(quantization, marks=rounds), sampling, wording])
def test_the_target_knows_and_the_retrained_model_does_not(
    attack: Callable[[Victim], list[Outcome]], victims: dict[str, Victim]
) -> None:
    (of_target,), (of_retrained,) = attack(victims["target"]), attack(victims["retrained"])
    assert [p.at for p in of_target.points] == [p.at for p in of_retrained.points]
    assert all(a > b + 0.1 for a, b in zip(known(of_target), known(of_retrained), strict=True))
    (again,) = attack(victims["target"])
    assert known(again) == known(of_target), "an attack is the same every time"


def test_relearning_asks_for_what_it_did_not_show(world: Benchmark) -> None:
    shown, asked = parted(world.forget, seed=0)
    assert len(shown) + len(asked) == len(world.forget)
    assert not any(row in asked for row in shown)
    every = list(lessons(world, quick=False, seed=0))
    assert len({lesson.setting for lesson in every}) == len(every) == 7
    assert all(row not in asked for lesson in every for row in lesson.rows)


def test_relearning_by_an_adapter_leaves_the_base(victims: dict[str, Victim], world: Benchmark) -> None:
    whole = relearning(Victim(victims["retrained"].load, world))
    assert {outcome.setting.split(", ")[1] for outcome in whole} == {"all weights", "LoRA"}
    assert all(outcome.points[0] == whole[0].points[0] for outcome in whole), "each begins with a fresh model"


def test_more_answers_say_more(victims: dict[str, Victim]) -> None:
    for victim in victims.values():
        values = known(sampling(victim)[0])
        assert values == sorted(values)


def test_the_worst_wording_is_worse_than_each(victims: dict[str, Victim]) -> None:
    (outcome,) = wording(victims["retrained"])
    *each, worst = known(outcome)
    assert worst >= max(each) - 1e-6


def test_texts_that_ask_nothing_are_not_sampled(victims: dict[str, Victim], world: Benchmark) -> None:
    texts = Benchmark("own", "own", [{"text": row["answer"]} for row in world.forget], [], {})
    assert sampling(Victim(victims["target"].load, texts)) == []
    assert len(wording(Victim(victims["target"].load, texts))) == 1


# -- rounding ----------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 64)
        self.odd = nn.Linear(33, 3)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 7, bias=True)
        self.head.weight = self.embed.weight


@rounds
@pytest.mark.parametrize(("name", "step"), [("Q8_0", 1 / 127), ("Q4_0", 1 / 8)])
def test_rounded_weights_have_as_many_values_as_bits_allow(name: str, step: float) -> None:
    torch.manual_seed(0)
    model = Small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    round_weights(model, name)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if key not in ("embed.weight", "head.weight"))
    blocks, rounded = (x["embed.weight"].reshape(-1, 32) for x in (before, after))
    largest = blocks.abs().amax(1, keepdim=True)
    assert ((blocks - rounded).abs() <= 1.01 * step * largest + 1e-3).all() and not torch.equal(blocks, rounded)
    levels = {len(set(block.tolist())) for block in rounded}
    assert max(levels) <= (16 if name == "Q4_0" else 32)
    round_weights(model, name)
    assert torch.allclose(model.state_dict()["embed.weight"], after["embed.weight"], atol=2e-3), "once is enough"


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"quantization needs the package gguf; pip install 'expunge\[gguf\]'"):
        rounding.check()


@rounds
def test_gpt2_s_layers_are_rounded_along_their_inputs(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model: Any = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=64, n_head=2, vocab_size=50, n_positions=32))
    layer = model.transformer.h[0].mlp.c_fc
    before = layer.weight.detach().clone()
    round_weights(model, "Q8_0")
    blocks = before.T.reshape(-1, 32)
    error = (layer.weight.detach().T.reshape(-1, 32) - blocks).abs()
    assert (error <= 0.51 / 127 * blocks.abs().amax(1, keepdim=True) + 1e-4).all() and error.max() > 0
