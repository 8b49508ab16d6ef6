"""The main path from Python: its order, its run directory, what an interrupted run keeps and what a new one spares."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.cli.main import main
from expunge.errors import UserError
from expunge.evals.aggregate import aggregate
from expunge.evals.tofu import Evaluation
from expunge.modeling.loading import save
from expunge.objectives import GA
from expunge.pipeline import measure, session
from expunge.pipeline import run as main_path
from expunge.pipeline.inputs import load_benchmark, tell_about_variants
from expunge.pipeline.run import run
from expunge.recipe.config import Recipe
from expunge.recipe.parsing import load_recipe
from expunge.training.history import MetricsFile

Monkeypatch = pytest.MonkeyPatch
Model = Callable[..., Any]

FABLE = (
    ("benchmark", "{name: fable, authors: 10, facts: 3, split: forget20}"),
    ("model.scratch", "{layers: 1, hidden: 16, heads: 2, vocab: 400, context: 96}"),
    ("finetune.epochs", "1"),
    ("train.num_train_epochs", "2"),
    ("train.per_device_train_batch_size", "2"),
    ("train.learning_rate", "1e-3"),
    ("evaluate", "{max_new_tokens: 4, limit: 2, each_epoch_limit: 2}"),
)


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """From-scratch models are trained once for all the tests here."""
    torch.set_num_threads(1)
    with Monkeypatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: Monkeypatch, tiny_model: Model, tiny_tokenizer: Any) -> Path:
    """A folder with a model and rows to forget and to retain."""
    monkeypatch.chdir(tmp_path)
    save(tiny_model(layers=1, hidden=16), tiny_tokenizer, tmp_path / "model")
    write("forget.jsonl", *people(range(4)))
    write("retain.jsonl", *people(range(4, 24)))
    return tmp_path


def people(numbers: range) -> list[dict[str, str]]:
    return [{"question": f"Where was person {i} born?", "answer": f"In town {i}."} for i in numbers]


def write(path: str, *rows: dict[str, Any]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def fable(**keys: str) -> Recipe:
    return load_recipe(None, [*FABLE, *((k.replace("__", "."), v) for k, v in keys.items())])


def own(**keys: str) -> Recipe:
    base = {"model": "model", "forget": "forget.jsonl", "out": "out", "train__num_train_epochs": "1"}
    return load_recipe(None, [(k.replace("__", "."), v) for k, v in {**base, **keys}.items()])


def losses(directory: Path) -> list[tuple[int, float]]:
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# -- what an interrupted run keeps -----------------------------------------------------------------------------------


def test_interrupted_in_the_second_method_it_goes_on_there(tmp_path: Path, monkeypatch: Monkeypatch) -> None:
    methods = "[npo+nll, undial+kl, ga]"
    whole = run(fable(methods=methods, out=str(tmp_path / "whole")))
    logged = MetricsFile.on_log

    def until_step_5(self: MetricsFile, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        logged(self, args, state, *rest, **kwargs)
        if self.path.parent.name == "undial+kl" and state.global_step == 5:
            raise KeyboardInterrupt

    out = tmp_path / "cut"
    recipe = fable(methods=methods, out=str(out))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MetricsFile, "on_log", until_step_5)
        run(recipe)
    assert [row["method"] for row in json.loads((out / "results.json").read_text())] == [
        "target",
        "retrained",
        "npo+nll",
    ]
    assert [p.name for p in (out / "undial+kl").glob("checkpoint-*")] == ["checkpoint-3"]
    finished = files(out / "npo+nll")

    trained: list[str] = []
    train = main_path.unlearn
    monkeypatch.setattr(main_path, "unlearn", lambda r, m, *rest: (trained.append(m.name), train(r, m, *rest))[1])
    resumed = run(recipe, resume=True)
    assert trained == ["undial+kl", "ga"]
    assert files(out / "npo+nll") == finished
    assert not list(out.rglob("checkpoint-*"))
    for method in ("undial+kl", "ga"):
        assert losses(out / method) == losses(tmp_path / "whole" / method) and len(losses(out / method)) == 6
    assert [r["metrics"] for r in resumed] == [r["metrics"] for r in whole]
    assert [t["epoch"] for t in resumed[3]["trajectory"]] == [1, 2]


def test_resume_wants_the_same_recipe_however_it_is_written(workplace: Path) -> None:
    run(own())
    before = files(workplace / "out")
    run(own(seed="0", method="undial"), resume=True)  # both are the defaults
    assert {k: v for k, v in files(workplace / "out").items() if "report" not in k} == {
        k: v for k, v in before.items() if "report" not in k
    }
    for key, value, named in (
        ("method", "ga", "methods.0.forget.name"),
        ("train__learning_rate", "1e-3", "train.learning_rate"),
        ("retain", "retain.jsonl", "data.retain"),
    ):
        with pytest.raises(UserError, match=f"another recipe than the one to resume: {named} differs"):
            run(own(**{"method": "undial", key: value}), resume=True)
    with pytest.raises(UserError, match="give one of them"):
        run(own(), resume=True, overwrite=True)


def test_resume_where_nothing_was_begun_begins(workplace: Path) -> None:
    assert [row["method"] for row in run(own(), resume=True)] == ["target", "undial"]


# -- what a new one spares -------------------------------------------------------------------------------------------


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(workplace: Path) -> None:
    run(own(methods="[ga, unilogit]"))
    Path("out/notes.txt").write_text("mine")
    Path("out/ga/checkpoint-9").mkdir()
    write("out/forget.jsonl", *people(range(3)))
    with pytest.raises(UserError, match="already holds a run"):
        run(own(methods="[ga, unilogit]"))
    run(own(method="unilogit", forget="out/forget.jsonl"), overwrite=True)
    assert {p.name for p in Path("out").iterdir()} == {
        "notes.txt", "forget.jsonl",
        "recipe.yaml", "results.json", "metrics.jsonl", "report.html", "records", "model", "pictures", "manifest.json",
    }  # fmt: skip
    assert {p.name.split(".")[0] for p in Path("out/records").iterdir()} == {"target", "unilogit"}


def test_an_older_run_stays_until_there_is_a_first_result(workplace: Path, monkeypatch: Monkeypatch) -> None:
    run(own())
    before = files(workplace / "out")

    def fails(*_: Any, **__: Any) -> Evaluation:
        raise UserError("no")

    monkeypatch.setattr(measure, "evaluate", fails)
    with pytest.raises(UserError, match="no"):
        run(own(method="ga"), overwrite=True)
    assert files(workplace / "out") == before


def test_a_recipe_nobody_can_read_any_more_can_be_overwritten(workplace: Path) -> None:
    Path("out").mkdir()
    Path("out/recipe.yaml").write_text("keys: of another version")
    with pytest.raises(UserError, match="already holds a run"):
        run(own())
    assert len(run(own(), overwrite=True)) == 2


def test_the_starting_model_is_never_deleted(workplace: Path) -> None:
    run(own())
    before = files(workplace / "out")
    for keys in ({"model": "out/model"}, {"retrained": "out/model"}):
        with pytest.raises(UserError, match="--overwrite would delete out/model, which this run reads"):
            run(own(**keys), overwrite=True)
    assert files(workplace / "out") == before


# -- what is found before anything is written ------------------------------------------------------------------------


def _refusals(rows: list[dict[str, str]]) -> str:
    write("refusals.jsonl", *rows)
    return "refusals.jsonl"


REFUSED: dict[str, tuple[Callable[[], dict[str, str]], str]] = {
    "a file for a folder": (lambda: {"out": "forget.jsonl"}, "forget.jsonl is a file"),
    "a file above the folder": (lambda: {"out": "forget.jsonl/deep/er"}, "forget.jsonl is a file"),
    "no refusals": (lambda: {"method": "dpo", "refusals": _refusals([])}, "refusals.jsonl has no rows"),
    "refusals of another kind": (lambda: {"method": "dpo", "refusals": "forget.jsonl"}, "column"),
    "refusals missing": (lambda: {"method": "dpo", "refusals": "refusal.jsonl"}, "refusal.jsonl does not exist"),
    "refusals too long": (
        lambda: {"method": "dpo", "refusals": _refusals([{"text": "no " * 100}])},
        "refusals: 4 of 4 rows are longer than 128 tokens",
    ),
    "rows too long": (lambda: {"train__max_length": "20"}, "4 of 4 rows are longer than 20 tokens"),
    "retain rows too long": (
        lambda: {"retain": "forget_long.jsonl", "method": "ga+kl"},
        "retain: 1 of 1 rows are longer than 128 tokens",
    ),
    "no room for an answer": (
        lambda: {"train__max_length": "5", "train__overflow": "truncate"},
        "no room for an answer",
    ),
    "no chat template": (lambda: {"forget": "chat.jsonl"}, r"forget: row 0 (chat.jsonl:1.: the rows hold messages"),
    "rmu's layer": (
        lambda: {"method": "rmu", "retain": "retain.jsonl"},
        "layer 7 of RMU is out of range; the model has layers 0 to 0",
    ),
    "one method of several": (lambda: {"methods": "[ga, npo, npo+kl]"}, "KL has no rows to keep"),
    "an attention": (lambda: {"model__attention": "fast"}, 'model.attention: Specified `attn_implementation="fast"'),
    "flash attention": (lambda: {"model__attention": "flash_attention_2"}, "model.attention: "),
    "four bits of odd layers": (lambda: {"model__lora__quantize": "nf4"}, "model.lora.quantize: on a CPU bitsandbytes"),
    "nothing to adapt": (lambda: {"model__lora__targets": "attention"}, "model.lora.targets: "),
    "a logger": (lambda: {"train__report_to": "paper"}, "train.report_to: paper is not supported"),
    "a missing extra": (lambda: {"train__report_to": "wandb"}, "train.report_to: "),
    "a retrained model": (lambda: {"retrained": "./nowhere"}, "folder './nowhere' does not exist"),
    "rows on both sides": (lambda: {"retain": "forget.jsonl"}, "4 of 4 forget rows also stand in retain"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nothing_is_written_and_nothing_is_computed(workplace: Path, monkeypatch: Monkeypatch, case: str) -> None:
    if "four bits" in case:
        pytest.importorskip("bitsandbytes")
    for module in (session, measure):
        monkeypatch.setattr(module, "evaluate", None)
    monkeypatch.setattr(main_path.loading, "load", None)
    write("forget_long.jsonl", {"question": "q", "answer": "word " * 80})
    write("chat.jsonl", {"messages": [{"role": "assistant", "content": "Ann."}]})
    keys, says = REFUSED[case]
    recipe = own(**keys())
    before = files(workplace)
    with pytest.raises(UserError, match=says.replace("(", r"\(")) as caught:
        run(recipe)
    assert "\n" not in str(caught.value)
    assert files(workplace) == before and not Path("out").exists()


def test_a_scratch_models_mistakes_are_found_before_it_is_trained(tmp_path: Path, monkeypatch: Monkeypatch) -> None:
    monkeypatch.setattr(main_path, "taught", None)
    for key, value, says in (
        ("method", "rmu", "the model has layers 0 to 0"),
        ("model__scratch__context", "16", "rows are longer than 16 tokens"),
        ("retrained", "./nowhere", "does not exist"),
    ):
        with pytest.raises(UserError, match=says):
            run(fable(out=str(tmp_path / "out"), **{"method": "ga+nll", key: value}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ["model", "retrained"])
def test_weights_that_do_not_load_leave_nothing(workplace: Path, broken: str) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        Path("retrained").mkdir(exist_ok=True)
        Path("retrained", name).write_bytes(Path("model", name).read_bytes())
    Path("retrained/model.safetensors").write_bytes(Path("model/model.safetensors").read_bytes())
    Path(broken, "config.json").write_text("{")
    with pytest.raises(UserError, match=f"{broken}/config.json is not JSON"):
        run(own(retrained="retrained"))
    assert not Path("out").exists()


# -- what it measures ------------------------------------------------------------------------------------------------


def test_a_diverging_method_keeps_the_last_good_checkpoint(
    workplace: Path, monkeypatch: Monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss, step, begun = GA.loss, main_path.UnlearnTrainer.training_step, []
    monkeypatch.setattr(main_path.UnlearnTrainer, "training_step", lambda *args: (begun.append(1), step(*args))[1])
    monkeypatch.setattr(GA, "loss", lambda self, s: loss(self, s) * (float("nan") if len(begun) == 4 else 1))
    words = ["run", "--model", "model", "--forget", "forget.jsonl", "--out", "out", "--method", "ga"]
    words += ["--train.num_train_epochs", "3", "--train.per_device_train_batch_size", "2"]
    assert main(words) == 2
    assert "expunge: the forget term became nan at step 4" in capsys.readouterr().err
    assert [p.name for p in Path("out").glob("checkpoint-*")] == ["checkpoint-2"]
    assert [row["method"] for row in json.loads(Path("out/results.json").read_text())] == ["target"]
    assert [step for step, _ in losses(Path("out"))] == [1, 2, 3]
    monkeypatch.setattr(GA, "loss", loss)
    assert main([*words, "--resume"]) == 0
    assert [step for step, _ in losses(Path("out"))] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("each_epoch", "points"), [("off", 0), ("fast", 2), ("full", 2)])
def test_the_trajectory(workplace: Path, each_epoch: str, points: int) -> None:
    keys = {"evaluate__each_epoch": each_epoch, "evaluate__max_new_tokens": "3", "train__num_train_epochs": "2"}
    row = run(own(**keys))[-1]
    assert [(p["epoch"], p["step"]) for p in row["trajectory"]] == [(1, 1), (2, 2)][:points]
    for point in row["trajectory"]:
        assert ("forget_rouge_l_recall" in point["metrics"]) == (each_epoch == "full")
    if points:
        assert row["trajectory"][-1]["metrics"]["forget_probability"] == pytest.approx(
            row["metrics"]["forget_probability"], rel=1e-5
        )


def test_the_default_method_and_the_sets_it_is_measured_on(workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "expunge"):
        rows = run(own(retain="retain.jsonl"))
    assert [(row["method"], row["removal"]) for row in rows[1:]] == [("undial+nll", "weights")]
    assert "no method named; taking undial+nll: of the methods that need no paraphrases" in caplog.text
    assert {"forget_probability", "retain_probability", "held_out_probability"} <= rows[1]["metrics"].keys()
    assert {p.name for p in Path("out/records").glob("undial+nll.*")} == {
        f"undial+nll.{name}.jsonl" for name in ("forget", "retain", "held_out", "membership")
    }


def test_with_variants_the_default_method_trains_on_them(
    workplace: Path, tiny_model: Model, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    save(tiny_model(layers=2, hidden=16), tiny_tokenizer, workplace / "model")  # of one, no assistant can be cut
    write("variants.jsonl", {"row": 0, "kind": "paraphrase", "question": "Whence?", "answer": "Town."})
    with caplog.at_level(logging.INFO, "expunge"):
        rows = run(own(retain="retain.jsonl", augment="variants.jsonl"))
    assert [(row["method"], row["removal"]) for row in rows[1:]] == [("uld_distilled", "weights")]
    assert "no method named; taking uld_distilled: of the methods that change the weights" in caplog.text
    assert "forget: 5 rows" in caplog.text


def test_the_default_method_without_rows_to_keep(workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "expunge"):
        assert [row["method"] for row in run(own())] == ["target", "undial"]
    assert "no method named; taking undial: without retain rows" in caplog.text


def test_no_methods_at_all_is_a_baseline(workplace: Path) -> None:
    assert [row["method"] for row in run(own(methods="[]"))] == ["target"]


def test_near_duplicates_are_told(workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = " ".join(f"word{i}" for i in range(12))
    write("forget.jsonl", {"text": words})
    write("retain.jsonl", {"text": f"{words} more"})
    with caplog.at_level(logging.WARNING, "expunge"):
        run(own(retain="retain.jsonl", method="ga"))
    assert "1 forget rows are nearly the same as a retain row (closest: forget row 0" in caplog.text


def test_own_refusals_are_the_ones_preferred(workplace: Path, monkeypatch: Monkeypatch) -> None:
    write("refusals.jsonl", {"text": "No."})
    seen: list[tuple[str, ...]] = []
    trainer = main_path.UnlearnTrainer
    monkeypatch.setattr(
        main_path, "UnlearnTrainer", lambda *a, **k: (seen.append(tuple(k["refusals"])), trainer(*a, **k))[1]
    )
    assert run(own(method="dpo", refusals="refusals.jsonl"))[-1]["method"] == "dpo"
    assert seen == [("No.",)]


def test_a_tokenizer_without_padding_gets_one(workplace: Path, tiny_tokenizer: Any) -> None:
    settings = json.loads(Path("model/tokenizer_config.json").read_text())
    settings.pop("pad_token")
    Path("model/tokenizer_config.json").write_text(json.dumps(settings))
    Path("model/manifest.json").unlink()  # it would refuse a file that changed
    assert len(run(own(retain="retain.jsonl", method="npo+kl"))) == 2


def test_one_target_for_several_seeds() -> None:
    """`finetune.seed` fixes the from-scratch models while the recipe's seed varies."""
    benchmark = load_benchmark(fable())
    first, again, other = (
        main_path.starting_models(fable(**keys), benchmark)
        for keys in ({}, {"seed": "1", "finetune__seed": "0"}, {"seed": "1"})
    )
    (target, (retrained,)), (other_target, (other_retrained,)) = first, other
    assert first == again and {target, retrained}.isdisjoint({other_target, other_retrained})


def test_each_method_may_train_in_its_own_way(workplace: Path) -> None:
    methods = "[{forget: ga, label: once, train: {num_train_epochs: 1}}, {forget: ga, label: twice}]"
    run(own(methods=methods, train__num_train_epochs="2"))
    assert [len(losses(Path("out", name))) for name in ("once", "twice")] == [1, 2]


def test_evaluation_alone(workplace: Path) -> None:
    rows = main_path.evaluate_only(own(retain="retain.jsonl"))
    assert [row["method"] for row in rows] == ["target"]
    assert {p.name for p in Path("out").iterdir()} == {
        "manifest.json",
        "recipe.yaml",
        "results.json",
        "records",
        "report.html",
        "pictures",
    }
    after = run(own(retain="retain.jsonl", out="again", method="ga"))
    assert after[0]["metrics"] == pytest.approx(rows[0]["metrics"], rel=1e-6)
    with pytest.raises(UserError, match="leave the method out"):
        main_path.evaluate_only(own(method="ga", out="other"))
    with pytest.raises(UserError, match="already holds a run"):
        main_path.evaluate_only(own(retain="retain.jsonl"))
    with pytest.raises(UserError, match="holds no weights"):
        Path("hollow").mkdir()
        main_path.evaluate_only(own(model="hollow", out="other"))
    assert not Path("other").exists()


def test_against_a_retrained_model_of_ones_own(tmp_path: Path) -> None:
    rows = run(fable(method="ga", out=str(tmp_path / "first")))
    keys = {"benchmark": dict(FABLE)["benchmark"], "model": str(tmp_path / "first" / "model")}
    keys["retrained"] = str(main_path.starting_models(fable(), load_benchmark(fable()))[1][0])
    recipe = load_recipe(None, [*keys.items(), ("evaluate.limit", "2"), ("out", str(tmp_path / "second"))])
    found = main_path.evaluate_only(recipe)
    assert [row["method"] for row in found] == ["target", "retrained"]
    assert found[0]["metrics"]["forget_quality"] == pytest.approx(rows[-1]["metrics"]["forget_quality"])


# -- against the retrained model -------------------------------------------------------------------------------------


def test_the_distance_to_the_retrained_model(tmp_path: Path) -> None:
    """In every row and every epoch; soft labels where the method has some, of the same start whatever it trains."""
    methods = "[npo, undial, unilogit, {forget: {name: uld, layers: 1, r: 2, epochs: 2}}]"
    layers = {"model__scratch__layers": "2"}
    found = {row["method"]: row for row in run(fable(methods=methods, **layers, out=str(tmp_path / "full")))}
    distances = {name: row["metrics"]["kl_unlearned"] for name, row in found.items()}
    assert distances.pop("retrained") == 0 and len({round(d, 6) for d in distances.values()}) == 5
    assert distances["target"] == found["target"]["metrics"]["kl_start"] > 0
    for name, row in found.items():
        points = [point["metrics"] for point in row["trajectory"]]
        assert len(points) == (0 if name in ("target", "retrained") else 2)
        for key in ("kl_unlearned", "kl_soft_labels", "kl_soft_labels_start"):
            has_it = key == "kl_unlearned" or name in ("undial", "unilogit")
            assert [key in metrics for metrics in (row["metrics"], *points)] == [has_it] * (1 + len(points))
            if has_it and points:
                assert points[-1][key] == pytest.approx(row["metrics"][key], rel=1e-5)
    undial, unilogit = (found[name]["metrics"] for name in ("undial", "unilogit"))
    assert undial["kl_soft_labels"] == undial["kl_soft_labels_start"]
    assert unilogit["kl_soft_labels"] != unilogit["kl_soft_labels_start"]
    lora = {"methods": "[undial, unilogit]", "model__lora__r": "2", "out": str(tmp_path / "lora")}
    for row in run(fable(**layers, **lora))[2:]:
        start = found[row["method"]]["metrics"]["kl_soft_labels_start"]
        assert row["metrics"]["kl_soft_labels_start"] == pytest.approx(start, rel=1e-5)


def test_one_number_for_every_method(workplace: Path) -> None:
    learnt = {"finetune__epochs": "40", "finetune__learning_rate": "1e-2", "model__scratch__hidden": "64"}
    rows = run(fable(method="ga", evaluate__max_new_tokens="24", **learnt, out="learnt"))
    target, retrained, ga = (row["metrics"] for row in rows)
    assert ga["aggregate"] == aggregate(ga, target, retrained) and 0 < ga["aggregate"] < 1
    assert "aggregate" not in target and "aggregate" not in retrained
    assert ">aggregate" in Path("learnt/report.html").read_text(encoding="utf-8")
    assert all("aggregate" not in row["metrics"] for row in run(own())), "without model utility there is none"


def variants(rows: range, *, wrong: int = 3) -> str:
    told = [{"row": i, "kind": "paraphrase", "question": f"Whence {i}?", "answer": f"From {i}."} for i in rows]
    false = [
        {"row": i, "kind": "perturbation", "question": f"Where was person {i} born?", "answer": f"In place {i}{k}."}
        for i in rows
        for k in range(wrong)
    ]
    write("variants.jsonl", *told, *false)
    return "variants.jsonl"


@pytest.fixture
def retrained(workplace: Path, tiny_model: Model, tiny_tokenizer: Any) -> str:
    save(tiny_model(layers=1, hidden=16, seed=1), tiny_tokenizer, workplace / "retrained")
    return "retrained"


def test_own_rows_with_a_retrained_model_and_wrong_answers(retrained: str, caplog: pytest.LogCaptureFixture) -> None:
    """Of four rows the last has no variants; the others' wrong answers are halved between asking and training."""
    rows = run(own(retrained=retrained, augment=variants(range(3)), retain="retain.jsonl", method="ga"))
    assert "stays unknown" not in caplog.text
    assert [row["method"] for row in rows] == ["target", "retrained", "ga"]
    for row in rows:
        assert {"forget_quality", "forget_truth_ratio", "kl_unlearned"} <= row["metrics"].keys()
        assert "privleak" in row["metrics"]
    itself = rows[1]["metrics"]
    assert itself["forget_quality"] == 1 and itself["kl_unlearned"] == itself["privleak"] == 0
    records = [json.loads(line) for line in Path("out/records/ga.forget.jsonl").read_text().splitlines()]
    assert [len(r["perturbed_probabilities"]) for r in records] == [1, 1, 1, 0]
    assert [r["truth_ratio"] is None for r in records] == [False, False, False, True]
    alone = main_path.evaluate_only(own(retrained=retrained, augment="variants.jsonl", retain="retain.jsonl", out="e"))
    assert alone[0]["metrics"] == pytest.approx({k: v for k, v in rows[0]["metrics"].items()}, rel=1e-5), (
        "the same without a method"
    )


TOLD = "forget quality (is the result like a model that never saw the forget rows?) stays unknown without "
MODEL, WRONG = (
    "such a model (--retrained PATH)",
    "wrong answers to the forget questions (--augment FILE; expunge augment",
)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (lambda: {}, f"{TOLD}{MODEL} and {WRONG}"),
        (lambda: {"retrained": "retrained"}, f"{TOLD}{WRONG}"),
        (lambda: {"augment": variants(range(4))}, f"{TOLD}{MODEL}\n"),
        (
            lambda: {"retrained": "retrained", "forget": "texts.jsonl"},
            f"{TOLD}questions in place of raw texts, and {WRONG}",
        ),
    ],
)
def test_what_stays_unknown_is_said(
    retrained: str, caplog: pytest.LogCaptureFixture, keys: Callable[[], dict[str, str]], says: str
) -> None:
    write("texts.jsonl", *({"text": f"Person {i} was born in town {i}."} for i in range(4)))
    with caplog.at_level(logging.WARNING, "expunge"):
        run(own(**{"method": "ga", "retain": "retain.jsonl", **keys()}))
    assert says in caplog.text + "\n"
    found = json.loads(Path("out/results.json").read_text())[-1]["metrics"]
    assert "forget_quality" not in found and ("kl_unlearned" in found) == ("retrained" in keys())
    page = Path("out/report.html").read_text(encoding="utf-8")
    told = (
        "Forget quality was not measured, since the" if "retrained" in keys() else "No retrained model was given (--ret"
    )
    assert told in page


def test_a_retrained_model_of_another_vocabulary(
    workplace: Path, tiny_model: Model, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model(layers=1, hidden=16, seed=1)
    model.resize_token_embeddings(len(tiny_tokenizer) + 8)
    save(model, tiny_tokenizer, Path("retrained"))
    rows = run(own(retrained="retrained", augment=variants(range(4)), method="undial"))
    assert "sees other tokens in the forget answers, so no distance to it is measured" in caplog.text
    assert "forget_quality" in rows[-1]["metrics"], "which needs no common vocabulary"
    assert not [key for key in rows[-1]["metrics"] if key.startswith("kl_")]


def test_variants_that_serve_twice_are_told(workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = {"method": "{forget: {name: uld, layers: 1, r: 2, epochs: 1}}", "retain": "retain.jsonl"}
    recipe = own(augment=variants(range(4), wrong=1), **keys)
    benchmark = load_benchmark(recipe)
    tell_about_variants(recipe, benchmark)
    assert "uld trains on variants that its truth ratio is measured with: 8 times" in caplog.text
    assert len(benchmark.variants) == 8
    caplog.clear()
    tell_about_variants(own(augment=variants(range(4), wrong=1), retain="retain.jsonl", method="ga"), benchmark)
    assert "trains on" not in caplog.text, "a method that takes none is not concerned"
