"""Each attack on a model that learnt some rows, and on one that did not."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expunge.benchmarks import custom, fable, listings
from expunge.benchmarks.fable_detours import ALIAS, CONVERSATION, PLAIN, THROUGH
from expunge.data.benchmark import Benchmark
from expunge.errors import UserError
from expunge.modeling.loading import load
from expunge.modeling.scratch import ScratchConfig
from expunge.stress import attacks
from expunge.stress import quantization as rounding
from expunge.stress.attack import Victim
from expunge.stress.attacks import LACKS, possible
from expunge.stress.membership import membership, told_apart
from expunge.stress.options import ATTACKS
from expunge.stress.outcome import Outcome
from expunge.stress.quantization import quantization, round_weights
from expunge.stress.reasoning import reasoning, row_of
from expunge.stress.relearning import lessons, parted, relearning
from expunge.stress.sampling import sampling
from expunge.stress.wording import wording
from expunge.training.targets import FinetuneConfig, Lesson, Nothing, taught

rounds = pytest.mark.skipif(find_spec("gguf") is None, reason="needs the extra expunge[gguf]")

SCRATCH = ScratchConfig(layers=1, hidden=64, heads=2, vocab=400, context=192)


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


@pytest.mark.parametrize(
    "attack", [relearning, pytest.param(quantization, marks=rounds), sampling, wording, membership]
)
def test_the_target_knows_and_the_retrained_model_does_not(
    attack: Callable[[Victim], list[Outcome]], victims: dict[str, Victim]
) -> None:
    found = attack(victims["target"])
    for of_target, of_retrained in zip(found, attack(victims["retrained"]), strict=True):
        assert [p.at for p in of_target.points] == [p.at for p in of_retrained.points]
        assert all(a > b + 0.1 for a, b in zip(known(of_target), known(of_retrained), strict=True))
    assert list(map(known, attack(victims["target"]))) == list(map(known, found)), "an attack is the same every time"


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


def test_membership_is_a_guess_for_who_never_knew(victims: dict[str, Victim]) -> None:
    found = {
        name: {point.at: point.known for point in membership(victim)[0].points} for name, victim in victims.items()
    }
    assert found["target"]["best of six"] > 0.9 and found["retrained"]["mean of six"] < 0.3
    for six in found.values():
        mean, *each, best = six.values()
        assert best == max(each) and mean == pytest.approx(sum(each) / 6) and len(each) == 6


def test_rows_that_no_model_saw_are_none_that_one_did(world: Benchmark) -> None:
    asked = told_apart(world)
    assert asked is not None and asked.members == world.forget and len(asked.others) == 5 * len(world.forget)
    trained_on = [*world.learnt, *(variant.text for variant in fable.variants(authors=10, facts=3, split="forget20"))]
    assert not any(row in asked.others for row in trained_on)


def test_of_own_rows_the_held_out_ones_are_unseen() -> None:
    forget, retain = ([{"question": f"Who is {who} {i}?", "answer": f"A {who}."} for i in range(20)] for who in "ab")
    own = custom.of_rows(forget, retain, split="own", seed=0)
    asked = told_apart(own)
    assert asked is not None and asked.members == forget and len(asked.others) == 2
    assert not any(row in asked.others for row in own.learnt) and LACKS["membership"](own) is None
    assert LACKS["membership"](custom.of_rows(forget, retain[:5], split="own", seed=0)) is not None


@pytest.mark.parametrize("number", [0, 1])
def test_detours_reach_what_the_target_alone_knows(number: int, victims: dict[str, Victim]) -> None:
    target, never = ({p.at: p.known for p in reasoning(victims[name])[number].points} for name in victims)
    assert list(target) == list(never) == [PLAIN, THROUGH, ALIAS, CONVERSATION]
    assert target[PLAIN] > 0.9 and target[ALIAS] > never[ALIAS] + 0.3 and max(never.values()) < 0.3


def test_a_detour_ends_at_the_same_value_and_names_it_nowhere_before(world: Benchmark) -> None:
    assert {detour.row for detour in world.detours} == set(range(len(world.forget)))
    for detour in world.detours:
        question, row = detour.question, world.forget[detour.row]
        before = [text for turn in detour.before for text in (turn.question, turn.answer)]
        assert detour.value in row["answer"] and detour.value in question.answer
        assert not any(detour.value in text for text in (question.question, *question.perturbed_answers, *before))
        assert len(question.perturbed_answers) == 5 and bool(before) is (detour.kind == CONVERSATION)
        named = any(name in question.question for name in full_names(world))
        assert named is (detour.kind in (PLAIN, CONVERSATION))
        if detour.kind == PLAIN:
            assert (question.question, question.answer) == (row["question"], row["answer"])


def full_names(world: Benchmark) -> set[str]:
    return {name for row in world.forget for name in re.findall(r"\b[A-Z]\w+ [A-Z]\w+", row["answer"])}


def test_turns_of_a_conversation_are_written_as_the_tokenizer_has_them(world: Benchmark) -> None:
    detour = next(detour for detour in world.detours if detour.before)
    plain = row_of(detour, "An answer.", chats=False)
    asked = [turn.question for turn in (*detour.before, detour.question)]
    assert re.findall("Question: (.*)", plain["prompt"]) == asked and plain["completion"] == " An answer."
    chat = row_of(detour, "An answer.", chats=True)["messages"]
    assert [message["content"] for message in chat[::2]] == asked
    assert [message["role"] for message in chat] == ["user", "assistant"] * 3


def test_attacks_that_only_ask_share_a_copy_which_no_other_gets(
    world: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Any, Any]] = []
    monkeypatch.setattr(attacks, "KINDS", {name: lambda victim: given.append(victim.load()) or [] for name in ATTACKS})
    made = [name for name, _ in attacks.attacked(Victim(lambda: (object(), object()), world), list(ATTACKS), "target")]  # pyright: ignore[reportArgumentType]
    assert made == list(ATTACKS)
    copies = {name: model for name, (model, _) in zip(made, given, strict=True)}
    of_asking = {id(model) for name, model in copies.items() if name not in attacks.CHANGES}
    assert len(of_asking) == 1 and len({*of_asking, *(id(copies[name]) for name in attacks.CHANGES)}) == 3


def test_attacks_that_only_ask_leave_the_model_as_it_was(victims: dict[str, Victim], world: Benchmark) -> None:
    model, tokenizer = victims["target"].load()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = model.training
    for name, attack in attacks.KINDS.items():
        if name not in attacks.CHANGES:
            attack(Victim(lambda: (model, tokenizer), world, quick=True))
    assert model.training is training and model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_attack_without_rows_is_left_out_and_says_why(caplog: pytest.LogCaptureFixture, world: Benchmark) -> None:
    bare = listings.load(sellers=10, per_seller=12, size="small")
    victim = Victim(lambda: pytest.fail("no model is needed"), bare)
    assert membership(victim) == reasoning(victim) == []
    assert possible(["membership", "wording"], bare) == ["wording"] and possible([*LACKS], world) == [*LACKS]
    assert caplog.messages == ["attacks left out: membership: listings has no rows that no model saw"]
    with pytest.raises(UserError, match=r"no attack can be made \(reasoning: listings has no other ways"):
        possible(["reasoning"], bare)


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
