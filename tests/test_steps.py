"""A step on the weights as a method: a run from the command line, its parts, what is kept, and what is refused."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from expunge.cli.main import main
from expunge.errors import UserError
from expunge.modeling.loading import load, save
from expunge.objectives import Noise
from expunge.pipeline.inputs import check_recipe, load_benchmark
from expunge.pipeline.plan import plan
from expunge.pipeline.run import run, starting_models
from expunge.recipe.config import Recipe
from expunge.recipe.parsing import load_recipe
from expunge.training.stepping import StepTrainer, mlp_layers
from expunge.training.trainer import UnlearnTrainer

WORLD: dict[str, Any] = {
    "benchmark": {"name": "fable", "authors": 10, "facts": 3, "split": "forget20"},
    "model": {"scratch": {"layers": 2, "hidden": 32, "heads": 2, "vocab": 400, "context": 96}},
    "finetune": {"epochs": 15, "learning_rate": 4e-3, "batch_size": 8},
    "train": {"per_device_train_batch_size": 2},
    "evaluate": {"max_new_tokens": 4, "limit": 4, "each_epoch_limit": 8},
    "threads": 1,
}


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def recipe_of(out: Path, method: Any = "repselect", *pairs: tuple[str, str]) -> Recipe:
    keys = [(key, json.dumps(value)) for key, value in {**WORLD, "method": method}.items()]
    return load_recipe(None, [*keys, ("out", str(out)), *pairs])


def weights_of(path: Path | str) -> dict[str, torch.Tensor]:
    return dict(load(path)[0].state_dict())


def test_from_the_command_line_only_the_mlps_move_by_the_distance(tmp_path: Path) -> None:
    file = tmp_path / "steps.yaml"
    file.write_text(yaml.safe_dump({**WORLD, "methods": ["repselect"]}))
    out = tmp_path / "out"
    words = ["--method.forget.distance", "0.2", "--method.forget.epochs", "3", "--out", str(out), "--json"]
    assert main(["run", str(file), *words]) == 0
    *_, row = json.loads((out / "results.json").read_text())
    assert (row["method"], row["removal"], [look["epoch"] for look in row["trajectory"]]) == (
        "repselect",
        "weights",
        [1, 2, 3],
    )
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["distance"] for line in logged if "distance" in line] == pytest.approx([0.2 / 3, 0.4 / 3, 0.2])
    assert row["seconds"] == logged[-1]["seconds"] > 0

    recipe = load_recipe(file)
    start = weights_of(starting_models(recipe, load_benchmark(recipe))[0])
    now = weights_of(out / "model")
    moved = {name for name, weight in start.items() if not torch.equal(weight, now[name])}
    mlps = {f"{name}.weight" for name in mlp_layers(load(out / "model")[0])}
    assert moved == mlps and len(mlps) == 6
    gap = sum((now[name] - start[name]).square().sum() for name in mlps) ** 0.5
    assert gap / sum(start[name].square().sum() for name in mlps) ** 0.5 == pytest.approx(0.2, rel=1e-4)
    first, last = (row["trajectory"][i]["metrics"]["forget_probability"] for i in (0, -1))
    assert last < first


def test_of_a_budget_the_last_part_within_it_is_what_is_saved(tmp_path: Path) -> None:
    method = {"forget": {"name": "repselect", "distance": 0.8, "epochs": 8}}
    rows = run(recipe_of(tmp_path / "budget", method, ("evaluate.utility_budget", "0.7")))
    stopped, looks = rows[-1]["stopped"], {look["epoch"]: look["metrics"] for look in rows[-1]["trajectory"]}
    assert 0 < stopped["kept"] < stopped["epoch"] == max(looks) < 8
    whole = run(recipe_of(tmp_path / "whole", {"forget": {**method["forget"], "epochs": 8}}))
    assert {look["epoch"]: look["metrics"] for look in whole[-1]["trajectory"]}[stopped["kept"]] == looks[
        stopped["kept"]
    ]
    start = weights_of(starting_models(*(r := recipe_of(tmp_path), load_benchmark(r)))[0])
    kept, last = (weights_of(tmp_path / name / "model") for name in ("budget", "whole"))
    for name, weight in start.items():
        torch.testing.assert_close(
            kept[name], weight + stopped["kept"] / 8 * (last[name] - weight), rtol=1e-4, atol=1e-5
        )


def test_the_way_back_goes_along_the_step(tmp_path: Path) -> None:
    method = {"forget": {"name": "repselect", "distance": 2, "epochs": 4}}
    evaluate = {**WORLD["evaluate"], "stop_when_forgotten": True, "keep_nearest": True}
    keys = {"evaluate": evaluate, "benchmark": {**WORLD["benchmark"], "authors": 20}}  # enough rows for a goal
    target, *_, row = run(recipe_of(tmp_path / "out", method, *((k, json.dumps(v)) for k, v in keys.items())))
    assert row["metrics"]["forget_probability"] <= target["goal"]["forget_probability"] < 0.5
    assert 0 < row["stopped"]["share"] < 1


def test_an_interrupted_step_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = {"forget": {"name": "repselect", "epochs": 3}}
    *_, expected = run(recipe_of(tmp_path / "whole", method))

    def dies(self: StepTrainer) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StepTrainer, "evaluate", dies)
        run(recipe_of(tmp_path / "out", method))
    *_, row = run(recipe_of(tmp_path / "out", method), resume=True)
    assert row["metrics"] == expected["metrics"]
    assert [look["metrics"] for look in row["trajectory"]] == [look["metrics"] for look in expected["trajectory"]]


def test_the_plan_counts_what_moves(tmp_path: Path) -> None:
    (row,) = plan(recipe_of(tmp_path, {"forget": {"name": "repselect", "epochs": 3}}))
    assert row["method"] == "repselect" and row["retain_rows"] == 0
    assert row["trainable"] == 2 * 3 * 32 * 80 and row["steps"] == 3


ALONE = "repselect is a step on the weights and has no retain term"
UNREAD = "repselect is a step on the weights, which does not read it; leave it out"


# -- noise -------------------------------------------------------------------------------------------------------------

PLAIN = {"forget": "npo", "retain": "nll", "train": {"num_train_epochs": 2, "learning_rate": 1e-3}}


def test_noise_is_put_on_the_unlearned_weights(tmp_path: Path) -> None:
    """With a learning rate of nearly nothing what is saved is the noised model."""
    noise = Noise(alpha=0.3, beta=0.5, epochs=1, learning_rate=1e-12)
    run(recipe_of(tmp_path / "plain", PLAIN))
    *_, row = run(recipe_of(tmp_path / "noised", {**PLAIN, "noise": noise.model_dump()}))
    assert row["method"] == "npo+nll-undo" and not (tmp_path / "noised" / "noise").exists()
    plain, noised = (dict(load(tmp_path / name / "model")[0].named_parameters()) for name in ("plain", "noised"))
    draw = torch.Generator().manual_seed(0)
    for name, weight in plain.items():
        torch.testing.assert_close(noised[name].data, noise.noised(weight.data, draw), rtol=1e-5, atol=1e-6)


def test_from_the_command_line_the_unlearned_model_is_distilled_into_the_noise(tmp_path: Path) -> None:
    file = tmp_path / "undo.yaml"
    file.write_text(yaml.safe_dump({**WORLD, "method": PLAIN}))
    words = ["--method.noise.alpha", "0.3", "--json"]
    kept = []
    for name, more in (("long", ["--method.noise.epochs", "20"]), ("short", ["--method.noise.learning_rate", "1e-12"])):
        assert main(["run", str(file), *words, *more, "--out", str(tmp_path / name)]) == 0
        kept.append(json.loads((tmp_path / name / "results.json").read_text())[-1]["metrics"]["retain_probability"])
    assert kept[0] > 2 * kept[1]


def test_a_step_may_be_followed_by_noise(tmp_path: Path) -> None:
    method = {"forget": {"name": "repselect", "epochs": 2}, "noise": {"epochs": 1}}
    (planned,) = plan(recipe_of(tmp_path, method))
    assert planned["steps"] == 2 + 30 / 2  # every row of the world
    *_, row = run(recipe_of(tmp_path / "out", method))
    assert row["method"] == "repselect-undo"


@pytest.mark.parametrize(
    ("method", "keys", "says"),
    [
        ({**PLAIN, "noise": {}}, {"model.lora": "{}"}, "method.noise: an adapter leaves the model's own weights"),
        ({"forget": "uld", "noise": {}}, {}, "method.noise: uld leaves the model's own weights as they are; leave it"),
        ({**PLAIN, "noise": {"alpha": 0}}, {}, "noise.alpha must be more than 0, got 0"),
        ({**PLAIN, "noise": {"beta": 2}}, {}, "noise.beta must be at most 1, got 2"),
        ({**PLAIN, "noise": {"gamma": 2}}, {}, "noise.gamma"),
    ],
)
def test_noise_is_refused_in_one_sentence(tmp_path: Path, method: Any, keys: dict[str, str], says: str) -> None:
    with pytest.raises(UserError) as error:
        check_recipe(recipe_of(tmp_path, method, *keys.items()))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_noise_without_rows_to_keep_is_refused(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    save(tiny_model(), tiny_tokenizer, tmp_path / "model")
    (tmp_path / "forget.jsonl").write_text('{"question": "Where was Ada born?", "answer": "In Lunport."}\n')
    pairs = {
        "model": str(tmp_path / "model"),
        "forget": str(tmp_path / "forget.jsonl"),
        "method": "{forget: npo, noise: {}}",
    }
    with pytest.raises(UserError, match=r"method\.noise: without rows to keep, noise destroys all that no row shows"):
        plan(load_recipe(None, pairs.items()))


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "keys", "says"),
    [
        ("repselect+kl", {}, f"'repselect+kl': {ALONE}; name it alone"),
        ({"forget": "repselect", "retain": "kl"}, {}, f"{ALONE}; leave retain out"),
        ("repselect", {"model.lora": "{}"}, "model.lora: repselect moves the model's own weights"),
        ("repselect", {"train.learning_rate": "1e-4"}, f"train.learning_rate: {UNREAD}"),
        ({"forget": "repselect", "train": {"max_steps": 3}}, {}, f"train.max_steps: {UNREAD}"),
        (
            "repselect",
            {"evaluate": "{stop_when_forgotten: true, raise_rate: true}"},
            "evaluate.raise_rate: repselect has no learning rate to raise; leave raise_rate out",
        ),
        ({"forget": {"name": "repselect", "distance": 0}}, {}, "distance must be more than 0, got 0"),
        ({"forget": {"name": "repselect", "components": 0}}, {}, "components must be at least 1, got 0"),
    ],
)
def test_refused_in_one_sentence(tmp_path: Path, method: Any, keys: dict[str, str], says: str) -> None:
    with pytest.raises(UserError) as error:
        check_recipe(recipe_of(tmp_path, method, *keys.items()))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_rate_of_the_recipe_is_for_the_methods_that_read_it(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    tree = {**recipe.model_dump(exclude_unset=True), "methods": ["npo", "repselect"], "train": {"learning_rate": 1e-4}}
    check_recipe(Recipe.model_validate(tree))


def test_python_s_trainer_says_who_makes_a_step(tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    with pytest.raises(
        UserError, match="'repselect' is a step on the weights, which a recipe makes: expunge run --meth"
    ):
        UnlearnTrainer(tiny_model(), objective="repselect", forget_dataset=[], processing_class=tiny_tokenizer)


def test_a_model_without_such_layers_is_refused(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    for layer in model.model.layers:
        layer.mlp = torch.nn.Identity()
    with pytest.raises(UserError, match="LlamaForCausalLM has no linear layers beside its attention"):
        mlp_layers(model)
