"""`expunge reproduce`: what is missing is run, what is there is kept, and the page says what the results say."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.cli.main import main
from expunge.errors import UserError
from expunge.evals.glossary import METRICS, show
from expunge.recipe import shipped
from expunge.recipe.parsing import load_recipe
from expunge.report import load_results
from expunge.reproduce import Reproduction, carry_out, missing
from expunge.system import manifest
from tests import forked

RECIPE = """\
benchmark: {name: fable, authors: 10, facts: 3, split: forget20}
model: {scratch: {layers: 2, hidden: 16, heads: 2, vocab: 400, context: 96}}
finetune: {epochs: 1}
methods: [ga, npo+nll]
train: {num_train_epochs: 1, per_device_train_batch_size: 4, learning_rate: 1.0e-3}
evaluate: {max_new_tokens: 4, limit: 2, each_epoch: "off"}
threads: 1
"""
ULD = RECIPE.replace("[ga, npo+nll]", "[{forget: {name: uld, layers: 1, epochs: 1}}]")
TABLE = """\
title: A small table
about: Nothing that anybody published.
sets:
  tiny:
    splits: {forget20: {}, forget10: {}}
    runs:
      - {recipe: pair.yaml, out: "pair-{split}", keys: {split: "{split}"}}
      - {recipe: uld.yaml, out: "uld-{split}-seed{seed}", keys: {split: "{split}"}}
  other:
    runs: [{recipe: pair.yaml, out: "all"}]
rows: {target: Target, ga: GA, npo+nll: NPO+GD, uld: ULD, dpo: DPO}
columns: [forget_quality, retain_probability, seconds]
pictures: [tradeoff]
"""
DISTILLED = """\
      - recipe: pair.yaml
        out: "distilled-{split}-seed{seed}"
        keys:
          split: "{split}"
          methods: [{forget: {name: uld_distilled, teacher: "{runs}/uld/model"}, augment: {paraphrases: 1}}]
"""


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, forked.forking():
        patch.setenv("EXPUNGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reproduction of one's own beside its recipes, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("pair.yaml").write_text(RECIPE, encoding="utf-8")
    Path("uld.yaml").write_text(ULD, encoding="utf-8")
    Path("small.yaml").write_text(TABLE, encoding="utf-8")
    return tmp_path / "small.yaml"


def runs_of(name: str, **options: Any) -> list[Any]:
    what, path = Reproduction.load(name)
    return what.jobs(path, runs=Path("runs"), **options)


def changed(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


# -- what is to be run -------------------------------------------------------------------------------------------------


def test_a_split_and_a_seed_fill_folders_and_keys(table: Path) -> None:
    table.write_text(TABLE.replace("  other:\n", DISTILLED + "  other:\n"), encoding="utf-8")
    jobs = runs_of("small.yaml", splits=["forget10"], seeds=2)
    assert [str(job.out) for job in jobs] == [
        *("runs/pair-forget10", "runs/pair-forget10-seed1"),
        *("runs/uld-forget10-seed0", "runs/uld-forget10-seed1"),
        *("runs/distilled-forget10-seed0", "runs/distilled-forget10-seed1"),
    ]
    assert {job.recipe.benchmark.split for job in jobs} == {"forget10"}
    assert [job.recipe.seed for job in jobs] == [0, 1] * 3
    assert jobs[-1].recipe.methods[0].forget.teacher == "runs/uld/model"
    # All seeds unlearn the target of the first; that is left as its recipe has it, so that an older run of it counts.
    assert [job.recipe.finetune.seed for job in jobs] == [None, 0] * 3


def test_variants_go_to_who_trains_on_them(table: Path) -> None:
    jobs = runs_of("small.yaml", overrides=[("augment", "variants.jsonl"), ("train.num_train_epochs", "2")])
    assert [job.recipe.augment for job in jobs] == [None, "variants.jsonl"]
    assert all(job.recipe.train.num_train_epochs == 2 for job in jobs)
    # A folder is for benchmarks that are read from one, and the variants beside it are of its rows.
    jobs = runs_of("small.yaml", overrides=[("augment", "variants.jsonl"), ("benchmark.path", "folder")])
    assert [job.recipe.augment for job in jobs] == [None, None]


def test_a_run_that_took_its_own_pace_is_there_already(table: Path) -> None:
    tree = RECIPE.replace(", learning_rate: 1.0e-3", "").replace("[ga, npo+nll]", "[ga]")
    Path("pair.yaml").write_text(tree, encoding="utf-8")
    carry_out(runs_of("small.yaml", recipe_set="other"))
    (job,) = runs_of("small.yaml", recipe_set="other")
    assert missing(job) == [] and "learning_rate" not in job.recipe.train.model_fields_set
    Path("pair.yaml").write_text(tree.replace("epochs: 1, per", "epochs: 2, per"), encoding="utf-8")
    (job,) = runs_of("small.yaml", recipe_set="other")
    with pytest.raises(UserError, match=r"another recipe than the one to reproduce: train\.num_train_epochs differs"):
        missing(job)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["smal"], "reproduce: unknown reproduction 'smal'."),
        (["none.yaml"], "reproduction 'none.yaml' does not exist."),
        (
            ["small.yaml", "--recipe-set", "tyny"],
            "--recipe-set: unknown set 'tyny'. Did you mean 'tiny'? Known: tiny, other.",
        ),
        (["small.yaml", "--splits", "forget2"], "--splits: unknown split 'forget2'. Did you mean 'forget20'?"),
        (
            ["small.yaml", "--recipe-set", "other", "--splits", "forget10"],
            "--splits: unknown split 'forget10'. Known: none.",
        ),
        (["small.yaml", "--seeds", "0"], "--seeds must be at least 1, got 0."),
        (["choosing", "--seeds", "3"], "--seeds: choosing names the seeds of its runs itself; leave the option out."),
        (["small.yaml", "--seed", "3"], "--seed: the reproduction decides it; use --seeds."),
        (["small.yaml", "--train.epochs", "3"], "the command line: unknown key 'train.epochs'."),
        (["small.yaml", "--no-run"], "small: no run has results yet; the same command without --no-run makes them."),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], says: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *words]) == 2
    assert says in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_file_that_is_no_reproduction(table: Path) -> None:
    table.write_text(TABLE.replace("pictures: [tradeoff]", "pictures: [pie]"), encoding="utf-8")
    with pytest.raises(UserError, match=r"small\.yaml: pictures\.0: "):
        Reproduction.load("small.yaml")


# -- the ones that come with expunge ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped.reproductions())
def test_every_run_of_it_is_a_recipe(name: str, tmp_path: Path) -> None:
    what, path = Reproduction.load(name)
    assert len(shipped.first_comment(path)) > 20
    assert set(what.columns) <= {*METRICS, "seconds"}
    assert bool(what.rows) == bool(what.columns)
    for chosen in what.sets:
        seeds = None if any("seed" in run.keys for run in what.sets[chosen].runs) else 2
        for splits in ([split] for split in what.sets[chosen].splits or [""]):
            jobs = what.jobs(path, runs=tmp_path, recipe_set=chosen, splits=splits if splits[0] else (), seeds=seeds)
            assert len({job.out for job in jobs}) == len(jobs)
            assert all(missing(job) for job in jobs)


def test_the_table_of_tofu_has_a_run_for_every_row() -> None:
    what, path = Reproduction.load("tofu-table")
    assert len(what.rows) == 21
    for chosen in what.sets:
        jobs = what.jobs(path, runs=Path("runs"), recipe_set=chosen)
        made = {method.name for job in jobs for own in job.each for method in own.methods}
        assert what.rows.keys() - {"target", "retrained"} <= made, chosen


def test_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(shipped.reproductions())


# -- from the command to the page --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_missing_is_run_and_what_is_there_is_kept(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "small.yaml", "--out", "pages", "--splits", "forget20"]
    assert main([*words, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"run": "runs/pair-forget20", "to do": ["target", "ga", "npo+nll"]},
        {"run": "runs/uld-forget20-seed0", "to do": ["target", "uld"]},
    ]
    assert not Path("runs").exists()
    # One of the runs was made before, by hand.
    assert main(["run", "pair.yaml", "--split", "forget20", "--out", "runs/pair-forget20"]) == 0
    before = changed(Path("runs/pair-forget20"))
    assert main(words) == 0
    assert changed(Path("runs/pair-forget20")) == before
    page = Path("pages/small.md").read_text(encoding="utf-8")
    assert "    expunge reproduce small.yaml --splits forget20\n" in page
    assert "Not run here: DPO." in page
    rows = {r["method"]: r for out in ("pair-forget20", "uld-forget20-seed0") for r in load_results(Path("runs") / out)}
    for method, words_ in {"target": "Target", "ga": "GA", "npo+nll": "NPO+GD", "uld": "ULD"}.items():
        quality, utility = (rows[method]["metrics"][name] for name in ("forget_quality", "retain_probability"))
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {words_} |")]
        assert f"| {show('forget_quality', quality)} | {show('model_utility', utility)} |" in line
    assert "\n| ULD | inference |" in page
    for column in ("forget quality ↑ (0 to 1; good is above .05)", "retain probability ↑", "seconds ↓", "removal:"):
        assert f"\n- {column}" in page
    (picture,) = re.findall(r"!\[.*\]\((.*)\)", page)
    assert picture == "small.svg" and Path("pages", picture).read_text().startswith("<svg")
    told = json.loads(Path("pages/small.json").read_text(encoding="utf-8"))
    (npo,) = [row for row in told["tables"][0]["rows"] if row["method"] == "npo+nll"]
    assert npo["runs"][0]["run"] == "pair-forget20"
    assert npo["runs"][0]["metrics"]["forget_quality"] == rows["npo+nll"]["metrics"]["forget_quality"]
    # Everything is there now, and the same command changes nothing.
    before = changed(Path("runs"))
    assert main(words) == 0
    assert changed(Path("runs")) == before
    # A method that is lost is run again, alone.
    results = Path("runs/pair-forget20/results.json")
    whole, rest = results.read_text(), [row for row in load_results(results.parent) if row["method"] != "ga"]
    (job, _) = runs_of("small.yaml")
    results.write_text(whole.replace("0", "1", 1))
    with pytest.raises(UserError, match=r"results.json (is not as it was written|has \d+ bytes)"):
        missing(job)
    results.write_text(whole)
    manifest.commit(results.parent, {"results.json": json.dumps(rest)})  # as a kill before the method's end leaves it
    assert missing(job) == ["ga"]
    carry_out([job])
    assert (
        missing(job) == []
        and changed(Path("runs"))["uld-forget20-seed0/results.json"] == before["uld-forget20-seed0/results.json"]
    )
    # Another recipe's run is never taken for this one's.
    assert main([*words, "--no-run", "--train.learning_rate", "2e-3"]) == 2
    assert "train.learning_rate differs; give the same keys, or other --runs." in capsys.readouterr().err


@pytest.mark.slow
def test_seeds_are_rows_with_intervals(table: Path) -> None:
    table.write_text(TABLE.replace("all", "all-seed{seed}"), encoding="utf-8")
    assert main(["reproduce", "small.yaml", "--recipe-set", "other", "--seeds", "2", "--out", "pages"]) == 0
    runs = [Path("runs") / f"all-seed{seed}" for seed in (0, 1)]
    finetune = load_recipe(runs[1] / "recipe.yaml").finetune
    assert finetune is not None and finetune.seed == 0
    values = [{r["method"]: r["metrics"]["retain_probability"] for r in load_results(run)} for run in runs]
    assert values[0]["target"] == values[1]["target"]
    page = Path("pages/small.md").read_text(encoding="utf-8")
    mean = show("retain_probability", (values[0]["npo+nll"] + values[1]["npo+nll"]) / 2)
    (line,) = [line for line in page.splitlines() if line.startswith("| NPO+GD |")]
    assert f"| {mean} [" in line and "95 % interval" in page
    told = json.loads(Path("pages/small.json").read_text(encoding="utf-8"))
    rows = {row["method"]: row for row in told["tables"][0]["rows"]}
    assert [run["seed"] for run in rows["npo+nll"]["runs"]] == [0, 1]


@pytest.mark.slow
def test_a_sweep_and_several_splits_at_once(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A reproduction may be a sweep, of which it shows the trials, or a recipe over values of its own."""
    pytest.importorskip("optuna")
    Path("many.yaml").write_text(RECIPE + "over: {benchmark.split: [forget10, forget20]}\n", encoding="utf-8")
    table.write_text(
        """\
title: Two pictures
about: Nothing that anybody published.
sets:
  tiny:
    runs:
      - recipe: pair.yaml
        out: swept
        space: {method: [ga, npo+nll]}
        objectives: [forget_probability, retain_probability]
      - {recipe: many.yaml, out: many}
pictures: [pareto, overview]
""",
        encoding="utf-8",
    )
    words = ["reproduce", "small.yaml", "--out", "pages"]
    assert main([*words, "--dry-run", "--json"]) == 0
    swept, many = json.loads(capsys.readouterr().out)
    assert swept == {"run": "runs/swept", "to do": ["every trial"]}
    assert many["to do"][:2] == ["split=forget10: target", "split=forget10: ga"] and len(many["to do"]) == 6
    assert main(words) == 0
    trials = json.loads(Path("runs/swept/trials.json").read_text(encoding="utf-8"))
    assert [row["state"] for row in trials] == ["finished"] * 2
    page = Path("pages/small.md").read_text(encoding="utf-8")
    assert re.findall(r"!\[.*\]\((.*)\)", page) == ["small-pareto-swept.svg", "small-overview-fable.svg"]
    for row in trials:
        front = [
            line
            for line in page.splitlines()
            if line.startswith(f"| {row['trial']} | method {row['keys']['method']} |")
        ]
        assert len(front) == row["front"]
        assert not front or f"| {show('forget_probability', row['metrics']['forget_probability'])} |" in front[0]
    before = changed(Path("runs"))
    assert main(words) == 0 and changed(Path("runs")) == before
    # A trial that is lost is made again by the same command.
    assert [job.out.name for job in runs_of("small.yaml") if missing(job)] == []
    trials[1]["state"] = "lost"
    Path("runs/swept/trials.json").write_text(json.dumps(trials), encoding="utf-8")
    assert missing(runs_of("small.yaml")[0]) == ["trial 1"]
    assert main([*words, "--dry-run", "--train.learning_rate", "1e-2"]) == 2
    assert "sweep.yaml is another recipe than the one to reproduce" in capsys.readouterr().err
