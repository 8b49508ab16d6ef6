"""Objectives, benchmarks and metrics outside the package: by import path they do what ours do."""

import json
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge import UnlearnConfig, UnlearnTrainer, UserError, evaluate, objectives, run
from expunge.cli.main import main
from expunge.evals.own import Records, metric
from expunge.objectives.trial import check_loss
from expunge.recipe.parsing import parse_recipe, recipe_of
from expunge.training.prepare import objectives_of
from tests import forked
from tests.small import FABLE

LOSSES = """
    import torch
    from torch import Tensor
    from pydantic import Field

    from expunge.objectives import NPO, Needs, Objective, Signals


    class Mine(Objective):
        '''Push log p of the answer down to a floor and no further.'''

        floor: float = Field(default=-5.0, le=0)

        @property
        def needs(self) -> Needs:
            return Needs(logp=True)

        def loss(self, s: Signals) -> Tensor:
            return (s.logp_N - self.floor).clamp(min=0)


    class Sharper(NPO):
        '''A subclass of one of ours.'''

        sharpness: float = 2.0

        def loss(self, s: Signals) -> Tensor:
            return self.sharpness * super().loss(s)


    class Choosy(Mine):
        rate: float


    class Averaged(Mine):
        def loss(self, s: Signals) -> Tensor:
            return s.logp_N.mean()


    class Summed(Mine):
        def loss(self, s: Signals) -> Tensor:
            return s.sequence_sum(s.logp_N)


    class BySequence(Mine):
        per = "sequence"


    class Unasked(Mine):
        def loss(self, s: Signals) -> Tensor:
            return s.logp_N - s.reference_logp_N


    class Mistaken(Mine):
        @property
        def needs(self) -> Needs:
            return Needs(logpp=True)


    class Failing(Mine):
        def loss(self, s: Signals) -> Tensor:
            return s.logp_N @ torch.zeros(2)


    class Half(Objective):
        @property
        def needs(self) -> Needs:
            return Needs(logp=True)


    class Stranger:
        pass


    def function() -> None:
        pass
"""

WORLD = """
    from expunge import UserError
    from expunge.benchmarks import BenchmarkConfig
    from expunge.benchmarks.fable import FableConfig
    from expunge.data.benchmark import Benchmark, Question


    class Cities(BenchmarkConfig):
        cities: int = 6

        def load(self) -> Benchmark:
            if self.cities < 2:
                raise UserError(f"benchmark.cities must be at least 2, got {self.cities}.")
            questions = [Question(f"Where is city {i}?", f"By river {i}.") for i in range(self.cities)]
            rows = [{"question": q.question, "answer": q.answer} for q in questions]
            return Benchmark("cities", "two", rows[:2], rows[2:], {"forget": questions[:2], "retain": questions[2:]})


    class Smaller(FableConfig):
        '''A subclass of one of ours.'''

        facts: int = 3


    class Empty(BenchmarkConfig):
        pass
"""

METRICS = """
    from expunge.evals.own import metric


    @metric(range=(0, None), best=None, group="forget")
    def length(records):
        '''Mean number of characters of the generated forget answers.'''
        texts = [r["generated"] for r in records["forget"] if r["generated"] is not None]
        return sum(map(len, texts)) / len(texts)


    @metric(range=(0, 1), best=1)
    def outside(records):
        return 2


    @metric(range=(0, 1), best=1)
    def failing(records):
        return records["nothing"]


    @metric(range=(0, 1), best=1)
    def degeneration(records):
        return 0


    def plain(records):
        return 0
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package of a user's own, which can be imported from it."""
    torch.set_num_threads(1)
    (tmp_path / "lib" / "own").mkdir(parents=True)
    (tmp_path / "lib" / "own" / "__init__.py").touch()
    for name, text in {"losses": LOSSES, "world": WORLD, "metrics": METRICS}.items():
        (tmp_path / "lib" / "own" / f"{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")
    (tmp_path / "lib" / "own" / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    (tmp_path / "lib" / "own" / "needy.py").write_text("import absent_package\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "own"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def recipe_file(method: Any) -> str:
    Path("own.yaml").write_text(json.dumps({**FABLE, "methods": method}), encoding="utf-8")
    return "own.yaml"


# -- objectives ------------------------------------------------------------------------------------------------------


def test_an_objective_of_ones_own_is_run_by_the_command(workplace: Path) -> None:
    command = [sys.executable, "-m", "expunge", "run", recipe_file([]), "--out", "out", "--json"]
    words = ["--method", "own.losses:Mine", "--method.forget.floor", "-30"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(workplace / "lib"), *sys.path])}
    done = forked.run([*command, *words], env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["method"] for row in rows] == ["target", "retrained", "mine"]
    assert rows[2]["metrics"]["forget_probability"] < rows[0]["metrics"]["forget_probability"]
    assert "own.losses:Mine" in Path("out/recipe.yaml").read_text(encoding="utf-8")
    assert "mine" in Path("out/report.html").read_text(encoding="utf-8")
    # Whoever has the module repeats the run from its recipe; the numbers are those of the recipe.
    again = run("out/recipe.yaml", keys={"out": "again"})
    assert [row["metrics"] for row in again] == [row["metrics"] for row in rows]


def test_in_recipes_in_python_and_in_the_trainer(workplace: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    from own.losses import Mine, Sharper  # pyright: ignore[reportMissingImports]

    base = {"data": {"forget": "f.jsonl"}, "model": "m"}
    by_path = recipe_of({**base, "method": {"forget": {"name": "own.losses:Mine", "floor": -3}, "retain": "kl"}})
    by_class = recipe_of({**base, "method": {"forget": Mine(floor=-3), "retain": objectives.KL()}})
    assert by_path.methods[0].forget == by_class.methods[0].forget == Mine(floor=-3)
    assert by_path.methods[0].name == "mine+kl"
    sharper = recipe_of({**base, "methods": ["ga+own.losses:Mine", {"forget": Sharper(beta=0.2)}]})
    assert [method.name for method in sharper.methods] == ["ga+mine", "sharper"]
    for recipe in (by_path, by_class, sharper):
        tree = recipe.model_dump(mode="json", exclude_unset=True)
        assert parse_recipe(json.loads(json.dumps(tree)), where="test") == recipe
    rows = [{"question": f"Who is {i}?", "answer": f"Person {i}."} for i in range(4)]
    trainer = UnlearnTrainer(
        model=tiny_model(),
        args=UnlearnConfig(output_dir="trained", max_steps=1, save_strategy="no"),
        objective="own.losses:Mine+nll",
        forget_dataset=rows[:2],
        retain_dataset=rows[2:],
        processing_class=tiny_tokenizer,
    )
    assert (type(trainer.objective), type(trainer.retain)) == (Mine, objectives.NLL)
    trainer.train()


def test_the_plan_knows_it(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", recipe_file(["own.losses:Mine+nll"]), "--dry-run", "--json"]) == 0
    assert [row["method"] for row in json.loads(capsys.readouterr().out)] == ["mine+nll"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Averaged", r"own\.losses:Averaged\.loss must return one number for each token, \[5\] .*, got shape \[\];"),
        ("Summed", r"must return one number for each token, \[5\] .*, got shape \[2\]; the trainer takes the mean"),
        ("BySequence", r"must return one number for each sequence, \[2\] .*, got shape \[5\]"),
        ("Unasked", r"own\.losses:Unasked\.loss: reference_logp_N was not asked for; give reference_logp in needs\."),
        ("Failing", r"own\.losses:Failing\.loss fails: RuntimeError: "),
        ("Mistaken", r"own\.losses:Mistaken\.needs fails: TypeError: .*'logpp'; it returns Needs of logp, log_odds, "),
    ],
)
def test_a_loss_is_tried_before_anything_is_written(
    name: str, says: str, workplace: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    for method in (f"own.losses:{name}", f"npo+own.losses:{name}"):
        with pytest.raises(UserError, match=says):
            run(recipe_file([method]), keys={"out": "out"})
    assert not Path("out").exists()
    rows = [{"question": f"Who is {i}?", "answer": f"Person {i}."} for i in range(4)]
    with pytest.raises(UserError, match=says):
        UnlearnTrainer(
            tiny_model(), objective=f"own.losses:{name}", forget_dataset=rows, processing_class=tiny_tokenizer
        )


@pytest.mark.parametrize("name", sorted(objectives.FORGET) + sorted(objectives.RETAIN))
def test_ours_pass_the_trial(name: str) -> None:
    made = {**objectives.FORGET, **objectives.RETAIN}[name]()
    check_loss(made, vocab_size=50, hidden_size=8)


def test_options_without_a_default_are_asked_for(workplace: Path) -> None:
    with pytest.raises(UserError, match=r"own\.losses:Choosy has no default for rate; give Choosy\(rate=…\)\."):
        objectives_of("own.losses:Choosy", None)
    assert (
        recipe_of({**FABLE, "method": {"forget": {"name": "own.losses:Choosy", "rate": 2}}}).methods[0].name == "choosy"
    )


MISTAKES = {
    "own.losse:Mine": "own.losse:Mine: there is no module own.losse; install it, or put its folder on PYTHONPATH.",
    "nowhere:Mine": "method: nowhere:Mine: there is no module nowhere; install it, or put its folder on PYTHONPATH.",
    "own.losses:Mime": "method: own.losses:Mime: own.losses has no Mime. Did you mean 'Mine'?",
    "own..losses:Mine": "method: 'own..losses:Mine' is no import path; write objective as package.module:Name.",
    "own.broken:Mine": "importing own.broken raises ZeroDivisionError (division by zero); mend it.",
    "own.needy:Mine": "importing own.needy needs absent_package, which is not installed.",
    "own.losses:Stranger": "own.losses:Stranger is no objective; make it a subclass of expunge.objectives.",
    "own.losses:function": "own.losses:function is not a class but a function;",
    "own.losses:Half": "own.losses:Half lacks loss, which every objective needs; write it.",
    "npo+own.losses:Stranger": "own.losses:Stranger is no objective;",
    "own.losses.Mine": "One of your own goes by its import path, package.module:Class.",
    "{forget: {name: 'own.losses:Mine', flor: 1}}": "unknown key 'method.forget.flor'.",
    "{forget: {name: 'own.losses:Mine', floor: 1}}": "method.forget.floor must be at most 0, got 1.",
    "{forget: {name: 'own.losses:Mime'}}": "method.forget: own.losses:Mime: own.losses has no Mime.",
}


@pytest.mark.parametrize("method", MISTAKES)
def test_a_mistake_is_one_sentence(workplace: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", recipe_file([]), "--out", "out", "--method", method]) == 2
    told = capsys.readouterr().err
    assert MISTAKES[method] in told
    assert told.count("\n") == 1
    assert not Path("out").exists()


# -- benchmarks ------------------------------------------------------------------------------------------------------

SMALL = {key: value for key, value in FABLE.items() if key != "benchmark"}


@pytest.fixture
def installed(workplace: Path) -> Path:
    """The package as an installer leaves it, with names for its benchmark and its metric."""
    folder = workplace / "lib" / "own-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n", encoding="utf-8")
    names = "[expunge.benchmarks]\ncities = own.world:Cities\n[expunge.metrics]\nlength = own.metrics:length\n"
    (folder / "entry_points.txt").write_text(names, encoding="utf-8")
    return workplace


def test_a_benchmark_and_a_metric_by_path_by_entry_point_and_in_python(installed: Path) -> None:
    from own.metrics import length  # pyright: ignore[reportMissingImports]
    from own.world import Cities  # pyright: ignore[reportMissingImports]

    Path("small.yaml").write_text(json.dumps({**SMALL, "method": "ga"}), encoding="utf-8")
    named = ["--benchmark", "cities", "--evaluate.metrics", "length"]
    pathed = ["--benchmark", "{name: 'own.world:Cities', cities: 6}", "--evaluate.metrics", "own.metrics:length"]
    for out, words in {"named": named, "pathed": pathed}.items():
        assert main(["run", "small.yaml", "--out", out, *words]) == 0
    evaluation = {**SMALL["evaluate"], "metrics": [length]}
    made = run({**SMALL, "method": "ga", "benchmark": Cities(cities=6), "evaluate": evaluation, "out": "made"})
    for out in ("named", "pathed"):
        rows = json.loads(Path(out, "results.json").read_text(encoding="utf-8"))
        assert [row["metrics"] for row in rows] == [row["metrics"] for row in made]
        assert all(row["benchmark"] == "cities" and row["metrics"]["length"] >= 0 for row in rows)
        again = run(f"{out}/recipe.yaml", keys={"out": out}, resume=True)
        assert again == rows
        assert "Mean number of characters" in Path(out, "report.html").read_text(encoding="utf-8")


def test_a_subclass_of_one_of_ours(workplace: Path) -> None:
    found = recipe_of({**SMALL, "method": "ga", "benchmark": {"name": "own.world:Smaller", "authors": 10}})
    assert found.benchmark is not None and len(found.benchmark.load().forget) == 3
    for only_set in (True, False):
        tree = found.model_dump(mode="json", exclude_unset=only_set, include={"benchmark"})
        assert tree["benchmark"]["name"] == "own.world:Smaller"
        assert recipe_of({**SMALL, "method": "ga", **tree}).benchmark == found.benchmark


ATLAS = """
    from typing import Literal

    from expunge.benchmarks.base import BenchmarkConfig
    from expunge.data.benchmark import Benchmark, Question


    class AtlasConfig(BenchmarkConfig):
        name: Literal["atlas"] = "atlas"
        path: str | None = None

        def load(self) -> Benchmark:
            questions = [Question(f"Where is {self.path} {i}?", f"By river {i}.") for i in range(6)]
            rows = [{"question": q.question, "answer": q.answer} for q in questions]
            return Benchmark("atlas", str(self.path), rows[:2], rows[2:], {"forget": questions[:2]})
"""


def test_a_file_in_the_folder_of_benchmarks_is_all_that_a_new_one_takes(workplace: Path) -> None:
    (workplace / "folder").mkdir()
    (workplace / "folder" / "atlas.py").write_text(textwrap.dedent(ATLAS), encoding="utf-8")
    script = (
        "import sys, expunge.benchmarks; expunge.benchmarks.__path__.append('folder'); "
        "from expunge.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    Path("small.yaml").write_text(json.dumps({**SMALL, "method": "ga"}), encoding="utf-8")
    words = ["run", "small.yaml", "--benchmark", "atlas", "--benchmark.path", "007", "--dry-run", "--json"]
    done = forked.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert [row["method"] for row in json.loads(done.stdout)] == ["ga"]
    done = forked.run([sys.executable, "-c", script, "run", "small.yaml", "--benchmark", "atlsa"],
                      capture_output=True, text=True, timeout=250)  # fmt: skip
    assert "unknown name 'atlsa'. Did you mean 'atlas'?" in done.stderr


def test_one_that_is_measured_alone(workplace: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    from own.world import Cities  # pyright: ignore[reportMissingImports]

    options: dict[str, Any] = {"max_new_tokens": 4, "metrics": "own.metrics:length"}
    found = evaluate(tiny_model(), tiny_tokenizer, benchmark=Cities(), **options)
    texts = [record["generated"] for record in found.records["forget"]]
    assert found.metrics["length"] == sum(map(len, texts)) / len(texts)


BENCHMARK_MISTAKES = {
    "own.world:City": "benchmark: own.world:City: own.world has no City. Did you mean 'Cities'?",
    "own.losses:Mine": "own.losses:Mine is no benchmark; make it a subclass of expunge.benchmarks.BenchmarkConfig.",
    "own.world:Empty": "own.world:Empty lacks load, which every benchmark needs; write it.",
    "citys": "benchmark: unknown name 'citys'. Did you mean 'cities'? Known: fable, listings, muse-news, muse-books, "
    "rwku, tofu, cities.",
    "{name: cities, city: 3}": "unknown key 'benchmark.city'.",
    "{name: cities, cities: many}": "benchmark.cities: 'many' is not valid",
    "{name: 'own.world:Cities', cities: 1}": "benchmark.cities must be at least 2, got 1.",
}


@pytest.mark.parametrize("benchmark", BENCHMARK_MISTAKES)
def test_a_benchmark_s_mistake(installed: Path, benchmark: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("small.yaml").write_text(json.dumps({**SMALL, "method": "ga"}), encoding="utf-8")
    assert main(["run", "small.yaml", "--out", "out", "--benchmark", benchmark]) == 2
    told = capsys.readouterr().err
    assert BENCHMARK_MISTAKES[benchmark] in told
    assert told.count("\n") == 1
    assert not Path("out").exists()


# -- metrics ---------------------------------------------------------------------------------------------------------

METRIC_MISTAKES = {
    "own.metrics:lenght": "own.metrics:lenght: own.metrics has no lenght. Did you mean 'length'?",
    "own.metrics:plain": "own.metrics:plain is no metric; put @expunge.evals.own.metric(range=(0, 1), best=0) above",
    "lengths": "evaluate.metrics: no metric is called 'lengths'; give its import path, package.module:function. "
    "Known: length.",
    "own.metrics:degeneration": "another metric is called degeneration; give the function another name.",
    "length,length": "another metric is called length",
    "own.metrics:outside": "evaluate.metrics: own.metrics:outside must be 0 to 1, got 2; mend it.",
    "own.metrics:failing": "evaluate.metrics: own.metrics:failing raises KeyError ('nothing'); mend it.",
}


@pytest.mark.parametrize("metrics", METRIC_MISTAKES)
def test_a_metric_s_mistake(installed: Path, metrics: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", recipe_file(["ga"]), "--out", "out", "--evaluate.metrics", metrics]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert METRIC_MISTAKES[metrics] in told
    assert not Path("out").exists()


def test_a_sweep_knows_its_direction(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--search", "grid", "--space", "{train.learning_rate: {choices: [1e-3, 1e-2]}}", "--out", "out"]
    asked = ["--objectives", "length,retain_probability", "--evaluate.metrics", "length"]
    assert main(["sweep", recipe_file(["ga"]), *words, *asked]) == 2
    assert "--objectives: length is best at the retrained model's value" in capsys.readouterr().err
    assert not Path("out").exists()


def test_directions_follow_from_range_and_best() -> None:
    def number(records: Records) -> float:
        return 0.0

    for span, best, hint, words in (
        ((0, 1), 0, "↓", "0 to 1"),
        ((0, 1), 1, "↑", "0 to 1"),
        ((0, 1), None, "≈", "0 to 1"),
        ((0, None), 0, "↓", "0 and up"),
        ((None, 0), 0, "↑", "at most 0"),
        ((0, 1), 0.5, "≈", "0 to 1"),
        ((None, None), None, "≈", "any number"),
    ):
        about = metric(range=span, best=best)(number).about
        assert (about.hint, about.range) == (hint, words)


def test_declarations_in_results_are_checked(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"method": "ga", "benchmark": "b", "split": "s", "seed": 0, "metrics": {"forget_probability": 0.5}}
    Path("results.json").write_text(json.dumps([{**row, "declares": {"metrics": {"a": {"label": 1}}}}]))
    assert main(["report", "."]) == 2
    assert "row 1: 'declares' must be an object of 'metrics' and 'axes'" in capsys.readouterr().err
