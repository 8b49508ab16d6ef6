"""A utility budget: training stops when it is overdrawn, and the best epoch within it is what is left."""

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from expunge.errors import UserError
from expunge.evals.glossary import show
from expunge.modeling.interpolation import Line
from expunge.modeling.loading import load
from expunge.pipeline.run import run
from expunge.recipe.config import Recipe
from expunge.recipe.parsing import load_recipe
from expunge.report import write_markdown
from expunge.training.arguments import UnlearnConfig
from expunge.training.budget import FLOOR, ForgetGoal, Look, UtilityBudget
from expunge.training.trainer import UnlearnTrainer

WORLD = (
    ("benchmark", "{name: fable, authors: 10, facts: 3, split: forget20}"),
    ("model.scratch", "{layers: 2, hidden: 32, heads: 2, vocab: 400, context: 96}"),
    ("finetune", "{epochs: 30, learning_rate: 4e-3, batch_size: 8}"),
    ("train.num_train_epochs", "6"),
    ("train.per_device_train_batch_size", "2"),
    ("train.learning_rate", "1e-3"),
    ("evaluate", "{max_new_tokens: 4, limit: 4, each_epoch_limit: 8}"),
)


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def recipe_of(out: Path, method: str, budget: str | None, **keys: str) -> Recipe:
    pairs = [*WORLD, ("method", method), ("out", str(out)), *((k.replace("__", "."), v) for k, v in keys.items())]
    pairs += [("evaluate.utility_budget", budget)] if budget else []
    return load_recipe(None, pairs)


def unlearn(out: Path, method: str, budget: str | None, **keys: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of the target and of the method."""
    target, *_, unlearned = run(recipe_of(out, method, budget, **keys))
    return target, unlearned


def look(epoch: int, quality: float, utility: float) -> Look:
    return Look(epoch, 10 * epoch, {"forget_quality": quality, "model_utility": utility})


# -- the rule ----------------------------------------------------------------------------------------------------------

BEFORE = {"forget_quality": 1e-6, "model_utility": 0.8, "retain_probability": 0.9}


def test_the_best_within_the_budget_is_kept_not_the_last() -> None:
    budget = UtilityBudget(0.95, BEFORE)
    assert [budget.see(x) for x in (look(1, 0.1, 0.8), look(2, 0.6, 0.77), look(3, 0.3, 0.79))] == [True, True, False]
    assert budget.over is None and budget.kept is not None and budget.kept.epoch == 2
    assert not budget.see(look(4, 0.9, 0.75))
    assert budget.over is not None
    assert budget.outcome() == {
        "epoch": 4,
        "kept": 2,
        "why": "stopped after epoch 4, where model utility .750 is under 0.95 of the target's .800; kept is epoch 2, "
        "with the best forget quality within it (.600)",
    }


def test_exactly_the_share_is_within_it() -> None:
    budget = UtilityBudget(0.5, {"retain_probability": 0.8, "forget_probability": 1.0})
    assert budget.see(Look(1, 1, {"retain_probability": 0.4, "forget_probability": 0.5}))
    # Without a forget quality the less is remembered the better.
    assert not budget.see(Look(2, 2, {"retain_probability": 0.4, "forget_probability": 0.6}))
    assert budget.see(Look(3, 3, {"retain_probability": 0.4, "forget_probability": 0.1}))
    assert (outcome := budget.outcome()) and outcome["why"].startswith(
        "ended after epoch 3, its last, where retain probability"
    )


def test_the_goal_is_reached_when_the_forget_answers_are_no_likelier_than_unknown_ones() -> None:
    goal, control = ForgetGoal(0.2), TrainerControl()
    for epoch, probability in ((1, 0.9), (2, 0.21)):
        goal.on_evaluate(None, TrainerState(epoch=epoch), control, {"eval_forget_probability": probability})
        assert not control.should_training_stop
    assert (outcome := goal.outcome()) and outcome["why"].startswith(
        "ended after epoch 2, where forget probability .210"
    )
    goal.on_evaluate(None, TrainerState(epoch=3), control, {"eval_forget_probability": 0.2})
    assert control.should_training_stop
    assert goal.outcome() == {
        "epoch": 3,
        "kept": 3,
        "why": "stopped after epoch 3, where forget probability .200 is no longer above that of answers that the "
        "target can't know (.200)",
    }


def test_a_training_that_had_reached_the_goal_goes_on_without_a_step(
    tiny_model: Any, tiny_tokenizer: Any, tiny_rows: Any, tmp_path: Path
) -> None:
    """A kill may come between the last checkpoint and the result."""

    def trainer(*probabilities: float) -> UnlearnTrainer:
        left = iter(probabilities)
        made = UnlearnTrainer(
            tiny_model(),
            UnlearnConfig(
                output_dir=str(tmp_path), num_train_epochs=4, per_device_train_batch_size=2, learning_rate=1e-3,
                eval_strategy="epoch", save_strategy="epoch", report_to=[], disable_tqdm=True, use_cpu=True,
            ),
            objective="npo", retain="nll", forget_dataset=tiny_rows[0], retain_dataset=tiny_rows[1],
            processing_class=tiny_tokenizer, evaluate=lambda _: {"forget_probability": next(left)},
        )  # fmt: skip
        made.add_callback(ForgetGoal(0.2))
        return made

    first, again = trainer(0.5, 0.1), trainer()
    first.train()
    output = again.train(resume_from_checkpoint=True)
    assert output.global_step == again.state.global_step == first.state.global_step == 6
    assert output.training_loss == pytest.approx(first.state.log_history[-1]["train_loss"])
    for ours, theirs in zip(again.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_where_a_way_back_follows_only_the_floor_stops() -> None:
    """How little is remembered counts, since the way back is judged by it."""

    def seen(epoch: int, forget: float, utility: float) -> Look:
        return Look(epoch, epoch, {"forget_quality": -forget, "forget_probability": forget, "model_utility": utility})

    before = {**BEFORE, "forget_probability": 1.0}
    budget = UtilityBudget(0.95, before, way_back=True)
    assert [budget.see(seen(1, 0.5, 0.7)), budget.see(seen(2, 0.2, 0.8 * FLOOR))] == [True, True]
    assert budget.over is None and not budget.holds(0.7) and budget.holds(0.76)
    assert not budget.see(seen(3, 0.1, 0.39))
    assert budget.over is not None and budget.outcome() == {
        "epoch": 3,
        "kept": 2,
        "why": "stopped after epoch 3, where model utility .390 is under 0.5 of the target's .800, too little for a "
        "way back; kept is epoch 2, with the best forget probability within it (.200)",
    }
    lower = UtilityBudget(0.3, before, way_back=True)  # than the floor
    assert lower.see(seen(1, 0.5, 0.25)) and not lower.see(seen(2, 0.4, 0.23)) and lower.over is not None


def test_the_entry_of_a_training_that_the_goal_ended_names_the_kept_epoch() -> None:
    before = {"retain_probability": 0.8, "forget_probability": 1.0}
    budget, goal = UtilityBudget(0.5, before), ForgetGoal(0.1)
    for epoch, forget in ((1, 0.3), (2, 0.2), (3, 0.4)):
        for each in (budget, goal):
            each.see(Look(epoch, epoch, {"retain_probability": 0.7, "forget_probability": forget}))
    ended = goal.outcome()
    assert ended is not None and budget.choice(ended) == {
        "epoch": 3,
        "kept": 2,
        "why": f"{ended['why']}; kept is epoch 2, with the best forget probability (.200) where retain probability is "
        "at least 0.5 of the target's .800",
    }
    assert budget.choice({**ended, "kept": 2}) == {**ended, "kept": 2}


def test_nothing_within_it_is_said() -> None:
    budget = UtilityBudget(0.95, BEFORE)
    budget.see(look(1, 1.0, 0.1))
    assert (outcome := budget.outcome()) and outcome["kept"] is None and "so this one is kept" in outcome["why"]


def test_a_budget_of_what_is_not_measured() -> None:
    with pytest.raises(UserError, match=r"evaluate\.utility_budget: .* measure nothing that should stay"):
        UtilityBudget(0.95, {"forget_quality": 0.1})
    with pytest.raises(UserError, match="utility_budget is kept by evaluations on the way; set each_epoch"):
        unlearn(Path("unused"), "ga", "0.95", evaluate__each_epoch="off")


# -- in training -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_method_that_destroys_the_model_is_stopped(tmp_path: Path) -> None:
    """Without a budget gradient ascent goes on to the end; with one the model of the last sound epoch is left."""
    _, free = unlearn(tmp_path / "free", "ga", None)
    target, held = unlearn(tmp_path / "held", "ga", "0.9", train__save_strategy="no")
    whole, kept = len(free["trajectory"]), held["stopped"]["kept"]
    assert "stopped" not in free and kept is not None
    # The way is the same until it ends, one evaluation after the budget is overdrawn.
    ways = [[step["metrics"]["retain_probability"] for step in row["trajectory"]] for row in (free, held)]
    assert ways[0][: len(ways[1])] == pytest.approx(ways[1])
    assert 1 < len(ways[1]) < whole == 6
    base = target["metrics"]["retain_probability"]
    assert ways[1][-1] < 0.9 * base * 1.01 and all(value > 0.85 * base for value in ways[1][:-1])
    qualities = [step["metrics"]["forget_quality"] for step in held["trajectory"][:-1]]
    assert qualities[int(kept) - 1] == max(qualities)
    # What is measured in the end and what is saved are of that epoch.
    assert held["metrics"]["forget_quality"] == pytest.approx(max(qualities))
    assert held["metrics"]["forget_probability"] == pytest.approx(
        held["trajectory"][int(kept) - 1]["metrics"]["forget_probability"]
    )
    saved, _ = load(tmp_path / "held" / "model")
    assert all(value.isfinite().all() for value in saved.state_dict().values())
    assert not list((tmp_path / "held").glob("checkpoint-*"))
    assert held["stopped"]["epoch"] == len(ways[1])
    page = write_markdown([tmp_path / "held"], tmp_path / "page.md").read_text(encoding="utf-8")
    assert f"ga, seed 0 {held['stopped']['why']}." in page
    assert show("", ways[1][-1]) in held["stopped"]["why"]
    assert held["stopped"]["why"] in html.unescape((tmp_path / "held" / "report.html").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        "npo+nll",
        "{forget: {name: uld, layers: 1, r: 8, epochs: 4, learning_rate: 4e-3}}",
        "{forget: {name: offset-npo, layers: 1, r: 8}, retain: nll}",
    ],
)
def test_whoever_stays_within_it_ends_with_the_best_epoch(method: str, tmp_path: Path) -> None:
    _, row = unlearn(tmp_path / "run", method, "0.05")
    values = [step["metrics"]["forget_quality"] for step in row["trajectory"]]
    assert row["stopped"]["why"].startswith("ended after epoch") and row["stopped"]["epoch"] == len(values)
    assert row["stopped"]["kept"] == 1 + values.index(max(values))
    assert row["stopped"]["kept"] < len(values)  # so that going back is part of this
    kept = row["trajectory"][int(row["stopped"]["kept"]) - 1]["metrics"]
    assert row["metrics"]["forget_probability"] == pytest.approx(kept["forget_probability"])


def test_a_resumed_run_remembers_what_it_saw(tmp_path: Path) -> None:
    """The checkpoint of a kept epoch knows the evaluations before it."""
    budget = UtilityBudget(0.95, BEFORE)
    rows = [
        {"epoch": float(k), "step": 5 * k, "eval_forget_quality": q, "eval_model_utility": 0.8}
        for k, q in ((1, 0.4), (2, 0.7))
    ]
    state: Any = type("State", (), {"log_history": [{"loss": 1.0, "step": 1}, *json.loads(json.dumps(rows))]})()
    budget.on_train_begin(None, state, None)  # pyright: ignore[reportArgumentType]
    assert budget.kept is not None and (budget.kept.epoch, budget.kept.step) == (2, 10)
    assert not budget.see(look(3, 0.5, 0.8))


# -- with a way back ---------------------------------------------------------------------------------------------------

BACK = {
    "benchmark": "{name: fable, authors: 20, facts: 3, split: forget20}",  # enough rows for a goal
    "evaluate": "{max_new_tokens: 4, limit: 8, each_epoch_limit: 8, stop_when_forgotten: true, keep_nearest: true}",
}
"""Utility in the end is measured of the same rows as on the way."""
DISTILLED = "{forget: {name: uld_distilled, layers: 1, r: 8, epochs: 6, learning_rate: 4e-3}}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "share", "keys"),
    [
        ("npo+nll", 0.9, {}),
        ("npo+nll", 0.85, {"model__lora__r": "8"}),
        (DISTILLED, 0.9, {"train__learning_rate": "2e-3"}),
    ],
    ids=["full", "lora", "distilled"],
)
def test_it_may_be_overdrawn_on_the_way_where_the_way_back_restores_it(
    method: str, share: float, keys: dict[str, str], tmp_path: Path
) -> None:
    target, row = unlearn(tmp_path / "run", method, str(share), **BACK, **keys)
    goal, least = target["goal"]["forget_probability"], share * target["metrics"]["retain_probability"]
    assert min(step["metrics"]["retain_probability"] for step in row["trajectory"]) < least
    assert row["metrics"]["retain_probability"] >= least and row["metrics"]["forget_probability"] <= goal
    assert 0 < row["stopped"]["share"] < 1 and "the least at which the goal holds" in row["stopped"]["why"]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [{}, {"model__lora__r": "8"}], ids=["full", "lora"])
def test_the_budget_goes_before_the_goal_where_no_share_keeps_both(adapter: dict[str, str], tmp_path: Path) -> None:
    target, row = unlearn(tmp_path / "run", "npo", "0.97", **BACK, **adapter)
    goal, before = target["goal"]["forget_probability"], target["metrics"]
    metrics, stopped = row["metrics"], row["stopped"]
    on_the_way = [step["metrics"]["retain_probability"] for step in row["trajectory"]]
    assert on_the_way[-1] < FLOOR * before["retain_probability"] <= min(on_the_way[:-1])
    assert metrics["retain_probability"] >= 0.97 * before["retain_probability"]
    assert goal < metrics["forget_probability"] < before["forget_probability"]
    said = [show("", metrics[name]) for name in ("forget_probability", "retain_probability")]
    assert "is under 0.5 of the target's" in stopped["why"] and stopped["kept"] == len(on_the_way) - 1
    assert (
        f"the goal was not reached within the budget: of the way from the target's weights {100 * stopped['share']:.0f}"
        f" % is kept (forget probability {said[0]}, retain probability {said[1]})" in stopped["why"]
    )
    page = write_markdown([tmp_path / "run"], tmp_path / "page.md").read_text(encoding="utf-8")
    assert f"npo, seed 0 {stopped['why']}." in page and "Forgetting more cost too much of the rest." in page


@pytest.mark.slow
@pytest.mark.parametrize("method", ["npo", "npo+nll"], ids=["ended by the floor", "ended by the goal"])
def test_a_run_that_was_killed_on_the_way_back_ends_the_same(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = unlearn(tmp_path / "whole", method, "0.97", **BACK)
    moved = Line.go_to

    def until_a_half(self: Line, share: float) -> None:
        moved(self, share)
        if share == 0.5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Line, "go_to", until_a_half)
        unlearn(tmp_path / "cut", method, "0.97", **BACK)
    assert not (tmp_path / "cut" / "model").exists()
    *_, resumed = run(recipe_of(tmp_path / "cut", method, "0.97", **BACK), resume=True)
    assert [resumed[key] for key in ("stopped", "metrics")] == [whole[key] for key in ("stopped", "metrics")]
    for ours, theirs in zip(
        *(load(tmp_path / each / "model")[0].parameters() for each in ("cut", "whole")), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_without_a_goal_there_is_no_way_back_and_training_stops_at_the_budget(tmp_path: Path) -> None:
    """No row has a name or a number, those to keep included."""
    animals = "cat dog cow hen pig fox owl bat rat bee ant elk hare mole toad crow swan wolf bear deer"
    rows = [
        {"question": f"what does the {it} like?", "answer": f"it likes to follow the {it}s."} for it in animals.split()
    ]
    for name, part in {"forget": rows[:4], "retain": rows[4:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    keys = {f"data.{name}": str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")} | {"method": "ga"}
    keys |= {"evaluate": BACK["evaluate"], "evaluate.utility_budget": "0.9", "out": str(tmp_path / "run")}
    world = [(key, value) for key, value in WORLD if key not in ("benchmark", *keys)]
    target, *_, row = run(load_recipe(None, [*world, *keys.items()]))
    assert (
        "goal" not in target
        and "share" not in row["stopped"]
        and "is under 0.9 of the target's" in row["stopped"]["why"]
    )
