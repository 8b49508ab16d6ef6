"""Methods that train an assistant: what learns, what is saved, what goes on after an interruption, what is refused.

Three-layer models of two hundred thousand parameters, on rows of the caller's own.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from expunge import load
from expunge.cli.main import main
from expunge.data import augment
from expunge.data.benchmark import Benchmark, Variant
from expunge.errors import UserError
from expunge.modeling.difference import LogitDifferenceForCausalLM
from expunge.modeling.loading import ScratchConfig, parameter_count, save, train_tokenizer
from expunge.pipeline import methods
from expunge.pipeline import run as main_path
from expunge.pipeline.inputs import load_benchmark, tell_about_variants
from expunge.pipeline.plan import plan
from expunge.pipeline.run import make_trainer, run
from expunge.recipe.config import Recipe
from expunge.recipe.parsing import load_recipe
from expunge.training.history import MetricsFile

Monkeypatch = pytest.MonkeyPatch
Model = Callable[..., Any]

ULD = "{name: uld, epochs: 2, r: 4}"
DISTILLED = "{name: uld_distilled, epochs: 2, r: 4}"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: Monkeypatch, tiny_model: Model, tiny_tokenizer: Any) -> Path:
    """A folder with a model, a smaller one, rows to forget and to retain, and variants of the former."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    save(tiny_model(layers=3, hidden=16), tiny_tokenizer, tmp_path / "model")
    save(tiny_model(layers=1, hidden=16, seed=1), tiny_tokenizer, tmp_path / "small")
    people = [{"question": f"Where was person {i} born?", "answer": f"In town {i}."} for i in range(24)]
    for name, rows in (("forget", people[:4]), ("retain", people[4:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    augment.write(tmp_path / "variants.jsonl", variants(people[:4]))
    return tmp_path


def variants(rows: list[dict[str, str]]) -> list[Variant]:
    return [
        variant
        for i, row in enumerate(rows)
        for variant in (
            Variant(i, "paraphrase", {"question": f"Person {i} comes from where?", "answer": f"From town {i}."}),
            Variant(i, "paraphrase", {"question": f"Birthplace of person {i}?", "answer": f"Town {i}."}),
            Variant(i, "perturbation", {"question": row["question"], "answer": f"In village {i}."}),
        )
    ]


def recipe(forget: str, **keys: str) -> Recipe:
    base = {
        "model": "model",
        "forget": "forget.jsonl",
        "retain": "retain.jsonl",
        "out": "out",
        "augment": "variants.jsonl",
        "train__num_train_epochs": "2",
        "train__per_device_train_batch_size": "4",
        "evaluate__max_new_tokens": "4",
        "evaluate__limit": "4",
        "method": f"{{forget: {forget}}}",
    }
    return load_recipe(None, [(k.replace("__", "."), v) for k, v in {**base, **keys}.items()])


def comparable(metrics: dict[str, float]) -> dict[str, float]:
    """Without the share of broken text, which each run judges by the model that it calls its target."""
    return {name: value for name, value in metrics.items() if "degeneration" not in name}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- what each trains on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forget", "augment", "sizes"),
    [
        (ULD, "{}", (4 + 4, 18 + 4)),
        (ULD, "{paraphrases: 1, perturbations: 0}", (4 + 4, 18)),
        (DISTILLED, "{}", (4 + 4 + 4, 18)),
        ("npo", "{}", (4, 18)),
        ("npo", "{paraphrases: 1}", (4 + 4, 18)),
    ],
)
def test_rows_and_variants(workplace: Path, forget: str, augment: str, sizes: tuple[int, int]) -> None:
    """Of the twenty retain rows a tenth is held out, and of the two paraphrases of each forget row one."""
    chosen = recipe(forget, method__augment=augment)
    material = methods.Material.of(chosen, chosen.methods[0], load_benchmark(chosen))
    assert (len(material.forget), len(material.retain)) == sizes


def test_without_variants_it_is_said(workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = load_recipe(None, [("model", "model"), ("forget", "forget.jsonl"), ("method", "uld")])
    tell_about_variants(given, replace(load_benchmark(given), variants=[]))  # of whose rows a rule could make none
    assert "uld trains on the forget rows alone" in caplog.text


def test_fable_brings_its_own() -> None:
    given = load_recipe(None, [("model", "m"), ("benchmark", "{name: fable, authors: 10, facts: 3, split: forget20}")])
    benchmark: Benchmark = load_benchmark(given)
    assert {v.row for v in benchmark.variants} == set(range(len(benchmark.forget)))


ALONE = ["ga", ULD, DISTILLED, "offset-npo", "{name: offset-ga, assistant: small}", "{name: rmu, layer: 1}"]
LORA = {"model__lora": "{r: 2}"}


@pytest.mark.parametrize(
    ("forget", "keys"), [*((forget, {}) for forget in ALONE), ("ga", LORA), (ULD, LORA), (DISTILLED, LORA)]
)
def test_a_plan_counts_the_models_that_are_then_trained(workplace: Path, forget: str, keys: dict[str, str]) -> None:
    chosen = recipe(forget, evaluate__each_epoch="off", **keys)
    (row,) = plan(chosen)
    training = make_trainer(chosen, chosen.methods[0], load_benchmark(chosen), "model", Path("out"), evaluate=None)
    weights = training.trainer.model.parameters()
    assert row["trainable"] == sum(weight.numel() for weight in weights if weight.requires_grad)
    assert row["parameters"] == parameter_count(training.unlearned())


# -- what each leaves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forget", [ULD, "offset-ga", "offset-npo", "offset-dpo"])
def test_inference_methods_leave_the_weights_alone(workplace: Path, forget: str) -> None:
    """The checkpoint holds an adapter and the base's place; the model that is loaded again scores the same."""
    before = files(workplace / "model")
    _, row = run(recipe(forget))
    assert row["removal"] == "inference" and row["seconds"] > 0
    assert files(workplace / "model") == before
    saved = files(workplace / "out" / "model")
    weights = [name for name in saved if name.endswith(".safetensors")]
    assert weights == ["assistant/adapter_model.safetensors"]
    model, _ = load("out/model")
    assert isinstance(model, LogitDifferenceForCausalLM)
    adapter = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert len(saved[weights[0]]) < 4 * adapter + 4_000  # a header
    data = ["--forget", "forget.jsonl", "--retain", "retain.jsonl", "--augment", "variants.jsonl"]
    data += ["--evaluate.max_new_tokens", "4", "--evaluate.limit", "4"]
    code = main(["eval", "out/model", *data, "--out", "again"])
    again = json.loads(Path("again/results.json").read_text())[0]["metrics"]
    assert code == 0 and comparable(again) == pytest.approx(comparable(row["metrics"]), rel=1e-5)


@pytest.mark.parametrize("forget", ["ga", "npo", "dpo"])
def test_offset_through_a_named_assistant(workplace: Path, forget: str) -> None:
    """At the start the difference is the base itself, whatever the assistant; then only the assistant changes."""
    before = files(workplace / "small")
    target, row = run(recipe(f"{{name: offset-{forget}, assistant: small}}", train__learning_rate="1e-2"))
    assert files(workplace / "small") == before and row["removal"] == "inference"
    assert row["metrics"]["forget_probability"] != target["metrics"]["forget_probability"]
    model, _ = load("out/model")
    start = AutoModelForCausalLM.from_pretrained("small").state_dict()
    changed = [name for name, x in model.assistant.state_dict().items() if not torch.equal(x, start[name])]
    assert changed and all(torch.equal(x, start[name]) for name, x in model.start.state_dict().items())


@pytest.mark.parametrize("match", ["logp", "forward"])
def test_the_distilled_one_is_an_ordinary_checkpoint(workplace: Path, match: str) -> None:
    _, row = run(recipe(DISTILLED, method__forget__match=match))
    assert row["removal"] == "weights"
    assert type(load("out/model")[0]) is LlamaForCausalLM
    assert not list(Path("out").rglob("teacher"))


def test_distilling_comes_nearer_to_the_teacher(workplace: Path) -> None:
    """The divergence to the difference, over forget rows and variants, falls by half while the model learns."""
    options = {"train__num_train_epochs": "30", "train__learning_rate": "1e-2", "evaluate__each_epoch": "off"}
    forget = "{name: uld_distilled, epochs: 20, learning_rate: 1.0e-2, r: 8}"
    run(recipe(forget, **options))
    logged = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    losses = [row["forget_loss"] for row in logged if "forget_loss" in row]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_the_methods_own_pace_is_not_its_teachers(workplace: Path, monkeypatch: Monkeypatch) -> None:
    paces: list[tuple[float, float]] = []

    class Watched(main_path.UnlearnTrainer):
        def __init__(self, model: Any, args: Any, **kwargs: Any) -> None:
            paces.append((args.learning_rate, args.num_train_epochs))
            super().__init__(model, args, **kwargs)

    monkeypatch.setattr(main_path, "UnlearnTrainer", Watched)
    own = {"method__train__learning_rate": "3e-4", "method__train__num_train_epochs": "1"}
    run(recipe("{name: uld_distilled, epochs: 2, learning_rate: 1.0e-2, r: 4}", **own))
    assert paces == [(1e-2, 2), (3e-4, 1)]


@pytest.mark.parametrize("reference", ["auto", "adapter_off"])
def test_distilled_into_an_adapter(workplace: Path, reference: str) -> None:
    _, row = run(recipe(DISTILLED, model__lora="{r: 2}", train__reference=reference))
    assert row["removal"] == "weights" and Path("out/model/adapter_config.json").is_file()


def test_a_saved_difference_is_distilled_by_a_command(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe(ULD))
    words = "--forget forget.jsonl --retain retain.jsonl --augment variants.jsonl --train.num_train_epochs 1 --json"
    assert main(["distill", "out", *words.split(), "--out", "small-print"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["method"], row["removal"]) for row in rows] == [("target", "weights"), ("uld_distilled", "weights")]
    assert not Path("small-print/teacher").exists()


def taught(methods: str, **keys: str) -> Recipe:
    """A recipe of several methods."""
    return recipe("ga", methods=methods, **keys)


def test_an_earlier_method_of_the_run_is_a_teacher(workplace: Path, monkeypatch: Monkeypatch) -> None:
    """As its folder is, and after an interruption; a folder of that name does not count."""
    Path("uld").mkdir()
    both = f"[{{forget: {ULD}}}, {{forget: {{name: uld_distilled, teacher: uld}}}}]"
    *_, uld, distilled = run(taught(both))
    _, apart = run(recipe("{name: uld_distilled, teacher: out/uld}", out="apart"))
    assert distilled["seconds"] > uld["seconds"] > 0  # the teacher's are its own, too
    assert comparable(distilled["metrics"]) == comparable(apart["metrics"])

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(main_path, "_teacher", interrupt)
        run(taught(both, out="cut"))
    assert run(taught(both, out="cut"), resume=True)[-1]["metrics"] == distilled["metrics"]


# -- what goes on after an interruption ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forget", "part"), [(ULD, "cut"), (DISTILLED, "cut/teacher"), (DISTILLED, "cut"), ("offset-npo", "cut")]
)
def test_interrupted_it_goes_on_as_if_nothing_had_been(
    workplace: Path, monkeypatch: Monkeypatch, forget: str, part: str
) -> None:
    size = {"train__per_device_train_batch_size": "2" if "offset" in forget else "4"}
    whole = run(recipe(forget, out="whole", **size))
    logged = MetricsFile.on_log

    stop = {"offset-npo": 3, ULD: 4, DISTILLED: 5 if part == "cut" else 4}[forget]

    def until_then(self: MetricsFile, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        logged(self, args, state, *rest, **kwargs)
        if self.path.parent == Path(part) and state.global_step == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MetricsFile, "on_log", until_then)
        run(recipe(forget, out="cut", **size))
    assert len(list(Path(part).glob("checkpoint-*"))) == 1
    resumed = run(recipe(forget, out="cut", **size), resume=True)
    assert [row["metrics"] for row in resumed] == [row["metrics"] for row in whole]
    assert not [p for p in Path("cut").rglob("*") if p.name.startswith("checkpoint") or p.name == "teacher"]


def test_an_adapter_is_drawn_by_the_seed(workplace: Path) -> None:
    same, again, other = (
        run(recipe("npo", out=out, seed=seed, model__lora="{r: 2}", evaluate__each_epoch="off"))[-1]["metrics"]
        for out, seed in (("a", "0"), ("b", "0"), ("c", "1"))
    )
    assert same == again != other


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forget", "says"),
    [
        ("{name: uld, layers: 3}", "3 layers can't be cut from a model of 3; set layers to a number from 1 to 2"),
        ("{name: offset-ga, assistant: other}", "vocabulary of 310 tokens and the model one of 292"),
        ("{name: offset-ga, assistant: /nowhere}", "'/nowhere' does not exist"),
        ("{name: uld_distilled, teacher: model}", "model is not a checkpoint of ULD"),
        ("{name: uld_distilled, teacher: nowhere}", "nowhere does not exist; give the folder"),
    ],
)
def test_what_cannot_be_joined_is_refused_before_anything_is_written(
    workplace: Path, tiny_model: Model, forget: str, says: str
) -> None:
    tokenizer = train_tokenizer(["Other words, other tokens"] * 3, ScratchConfig(vocab=310))
    other = tiny_model(layers=1, hidden=16)
    other.resize_token_embeddings(310)
    save(other, tokenizer, workplace / "other")
    with pytest.raises(UserError, match=says):
        run(recipe(forget))
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("methods", "says"),
    [
        ("[{forget: {name: uld_distilled, teacher: uld}}, uld]", "uld is the teacher of uld_distilled; list it first"),
        ("[ga, {forget: {name: uld_distilled, teacher: ga}}]", "has the teacher ga, which trains no assistant"),
    ],
)
def test_what_can_be_no_teacher_is_refused(workplace: Path, methods: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        taught(methods)


def test_one_layer_has_no_smaller_assistant(workplace: Path) -> None:
    with pytest.raises(UserError, match="a model of one layer has no smaller assistant"):
        run(recipe(ULD, model="small"))


def test_a_lost_base_is_named(workplace: Path) -> None:
    run(recipe(ULD))
    shutil.move("model", "moved")
    with pytest.raises(UserError, match=r"its base .*model is gone; put it back, or change base in config\.json"):
        load("out/model")


def test_retain_beside_uld_is_refused(workplace: Path) -> None:
    with pytest.raises(UserError, match="uld brings its own retain term; leave retain out"):
        recipe(ULD, method=f"{{forget: {ULD}, retain: nll}}")
