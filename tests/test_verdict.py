"""The answers on top of a report: each in each of its states, the same in every place, and from older runs too."""

import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from expunge.cli.terminal import print_results
from expunge.errors import UserError
from expunge.pipeline.rundir import tree_of
from expunge.recipe.parsing import load_recipe
from expunge.report import load_results, write_markdown, write_report
from expunge.report.advice import Advice, advise, method_meant
from expunge.report.box import as_json, boxed, sentence
from expunge.report.comparison import ReportSection, compare, sections
from expunge.report.harm import damage
from expunge.report.judgement import certainty, forgotten, judge, would_return
from expunge.report.records import nothing, reader_of
from expunge.report.wording import certainty_words, damage_words, forgotten_words, removal_words

SAID, LIKELY = "forget_rouge_l_recall", "forget_probability"
TARGET = {SAID: 0.9, LIKELY: 0.8, "retain_rouge_l_recall": 0.8, "retain_probability": 0.9, "degeneration": 0.0}
RETRAINED = {SAID: 0.3, LIKELY: 0.1, "retain_rouge_l_recall": 0.8, "retain_probability": 0.9, "degeneration": 0.0}
GONE = {SAID: 0.3, LIKELY: 0.1}


def row(method: str, metrics: dict[str, float], **more: Any) -> dict[str, Any]:
    kind = {"removal": "inference" if method.startswith(("uld", "offset")) else "weights"}
    common = {"benchmark": "custom", "split": "mine", "seed": 0, "seconds": None, "trajectory": []}
    return {**common, **kind, "method": method, "metrics": metrics, **more}


def section_of(
    *methods: tuple[str, dict[str, float]],
    target: dict[str, float] | None = TARGET,
    retrained: dict[str, float] | None = RETRAINED,
    goal: float | None = None,
    folder: Path = Path("runs/x"),
    **more: Any,
) -> ReportSection:
    references = [] if target is None else [row("target", target, **({"goal": {LIKELY: goal}} if goal else {}))]
    references += [] if retrained is None else [row("retrained", retrained)]
    rows = [*references, *(row(name, {**(target or {}), **metrics}, **more) for name, metrics in methods)]
    (section,) = compare([(folder, each) for each in rows])
    return section


ALONE: dict[str, Any] = {"retrained": None}
GOAL: dict[str, Any] = {"retrained": None, "goal": 0.16}


@pytest.mark.parametrize(
    ("metrics", "options", "state", "against", "says"),
    [
        (
            GONE,
            {},
            "yes",
            "retrained",
            "it says 30 % of the words of the forget answers (90 % before; a model that never",
        ),
        (
            {SAID: 0.35, LIKELY: 0.16},
            {},
            "yes",
            "retrained",
            "16 % likely (80 % before; a model that never saw them: 10 %)",
        ),
        ({SAID: 0.3, LIKELY: 0.5}, {}, "partly", "retrained", "50 % likely"),
        ({SAID: 0.5, LIKELY: 0.1}, {}, "partly", "retrained", "50 % of the words"),
        ({SAID: 0.88, LIKELY: 0.78}, {}, "no", "retrained", "88 % of the words"),
        (
            {SAID: 0.02, LIKELY: 0.0},
            {},
            "yes",
            "retrained",
            "so far below a model that never saw them that the removal",
        ),
        (GONE, {"retrained": {SAID: 0.88, LIKELY: 0.78}}, "cannot be told", "retrained", "little to forget"),
        ({**GONE, "degeneration": 0.9}, {}, "cannot be told", "retrained", "Its answers are broken text"),
        (GONE, GOAL, "yes", "goal", "10 % likely (80 % before; answers that it cannot know: 16 % at most)"),
        ({SAID: 0.4, LIKELY: 0.2}, GOAL, "partly", "goal", "20 % likely"),
        ({SAID: 0.89, LIKELY: 0.1}, GOAL, "partly", "goal", "89 % of the words"),
        ({SAID: 0.89, LIKELY: 0.79}, GOAL, "no", "goal", "79 % likely"),
        (GONE, ALONE, "cannot be told", "target", "It is not known how low is low enough"),
        ({SAID: 0.5, LIKELY: 0.4}, ALONE, "partly", "target", "50 % of the words"),
        ({SAID: 0.85, LIKELY: 0.75}, ALONE, "no", "target", "85 % of the words"),
        (GONE, {**ALONE, "target": {**TARGET, SAID: 0.2, LIKELY: 0.1}}, "cannot be told", "target", "little to forget"),
        (GONE, {**ALONE, "target": None}, "cannot be told", "nothing", "not known how low is low enough"),
    ],
)
def test_is_it_forgotten(
    metrics: dict[str, float], options: dict[str, Any], state: str, against: str, says: str
) -> None:
    section = section_of(("npo+nll", metrics), **options)
    found = forgotten(section, section.methods[0])
    answer, words = forgotten_words(found)
    assert (found.state, found.against) == (state, against)
    assert answer == state.capitalize() and says in words
    assert "p-value" not in words and "None" not in words


def test_forgetting_that_nothing_measured_cannot_be_told() -> None:
    section = section_of(("npo", {}), target={"general": 0.5})
    assert forgotten_words(forgotten(section, section.methods[0])) == (
        "Cannot be told",
        "Nothing about the forget rows was measured.",
    )


def test_a_benchmark_of_its_own_is_judged_by_its_own_metric() -> None:
    target, retrained = {"forget_all": 0.8, "neighbor_all": 0.9}, {"forget_all": 0.1, "neighbor_all": 0.9}
    section = section_of(("npo+nll", {"forget_all": 0.15, "neighbor_all": 0.6}), target=target, retrained=retrained)
    assert forgotten(section, section.methods[0]).state == "yes"
    assert damage(section, section.methods[0], nothing).state == "much"


def test_suppression_is_never_the_headline() -> None:
    """However well it does, and alone: the weights still hold what is suppressed in use."""
    section = section_of(("uld", GONE), ("npo+nll", {SAID: 0.5, LIKELY: 0.4}))
    box = boxed(section, nothing)
    assert box is not None and box.judgement.label == "npo+nll" and box.judgement.forgotten.state == "partly"
    assert section.ranked()[0].label == "npo+nll"
    ruined = boxed(section_of(("uld", GONE), ("ga", {**GONE, "retain_rouge_l_recall": 0.0})), nothing)
    assert ruined is not None and ruined.judgement.label == "ga" and ruined.judgement.damage.state == "most"
    alone = boxed(section_of(("uld", GONE)), nothing)
    assert alone is not None and alone.judgement.forgotten.state == "no"
    assert sentence(alone.items[0]).startswith("No. It is only hidden in use: the weights still hold it.")
    assert sentence(alone.items[2]).startswith("No, only suppressed.")
    assert alone.items[5].command == "expunge run runs/x/recipe.yaml --method uld_distilled --out runs/x-next"


@pytest.mark.parametrize(
    ("metrics", "state", "says"),
    [
        ({}, "none", "Of the answers that should stay it says 80 % of the words (80 % before)."),
        ({"retain_probability": 0.1}, "none", "80 % of the words"),
        ({"retain_rouge_l_recall": 0.7}, "little", "70 % of the words (80 % before)"),
        ({"retain_rouge_l_recall": 0.5}, "much", "50 % of the words"),
        ({"retain_rouge_l_recall": 0.2}, "most", "20 % of the words"),
        ({"degeneration": 0.3}, "much", "30 % of its answers to forget questions are broken text (0 % before)"),
        ({"degeneration": 0.7}, "much", "70 % of its answers"),
        ({"degeneration": 0.15}, "little", "15 % of its answers"),
        ({"degeneration": 0.02}, "none", "2 % of its answers"),
    ],
)
def test_what_else_was_damaged(metrics: dict[str, float], state: str, says: str) -> None:
    section = section_of(("npo+nll", {**GONE, **metrics}))
    found = damage(section, section.methods[0], nothing)
    assert found.state == state and says in damage_words(found)[1]


def test_damage_without_generated_answers_or_without_anything_before() -> None:
    likely = {SAID: 0.9, LIKELY: 0.8, "retain_probability": 0.9}
    section = section_of(("npo", {"retain_probability": 0.3}), target=likely, retrained=None)
    found = damage(section, section.methods[0], nothing)
    assert found.state == "most" and "are 30 % likely to it (90 % before)" in damage_words(found)[1]
    nought = {**likely, "retain_probability": 0.0, "retain_rouge_l_recall": 0.0}
    section = section_of(("npo", {}), target=nought, retrained=None)
    found = damage(section, section.methods[0], nothing)
    assert found.state == "not known" and "it had none right before" in damage_words(found)[1]
    section = section_of(("npo", GONE), target=None, retrained=None)
    assert damage(section, section.methods[0], nothing).state == "not known"


# -- records -----------------------------------------------------------------------------------------------------------


def write_run(folder: Path, *, after: float = 0.2, general: int = 20, redact: bool = False) -> Path:
    """A run of one method whose retain answers 0 to 4 of 30 got worse, and general questions from 30 on."""
    shared = {**TARGET, "general": 0.5}
    rows = [row("target", shared, goal={LIKELY: 0.16}), row("npo+nll", {**shared, **GONE, "general": general / 60})]
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(rows))
    (folder / "recipe.yaml").write_text(
        "data: {forget: f.jsonl, retain: r.jsonl}\nmodel: {name: some/model}\nmethods:\n- forget: {name: npo}\n"
        "  retain: {name: nll}\ntrain: {learning_rate: 2.0e-05}\n"
    )
    (folder / "records").mkdir()
    for method, right in (("target", 30), ("npo+nll", general)):
        shares = {
            "retain": [after if method != "target" and i < 5 else 0.8 + i / 1000 for i in range(30)],
            "forget": [0.1 * (i % 7) for i in range(20)],
        }
        for name, values in shares.items():
            lines = [
                {"index": i, "question": f"{name} {i}?", "answer": f"right {i}", "rouge_l_recall": v, "probability": v}
                | ({"redacted": ["generated"]} if redact else {"generated": f"{method} says {i}"})
                for i, v in enumerate(values)
            ]
            (folder / f"records/{method}.{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        lines = [
            {"index": i, "question": f"general {i}?", "answer": "a", "generated": "b", "states": float(i < right)}
            for i in range(60)
        ]
        (folder / f"records/{method}.general.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


def test_the_rows_that_got_worse_come_worst_first(tmp_path: Path) -> None:
    (section,) = sections([write_run(tmp_path / "run")])
    found = damage(section, section.methods[0], reader_of([section]))
    assert [(w.of, w.index) for w in found.rows] == [
        *(("general", i) for i in range(20, 30)),
        *(("retain", i) for i in range(4, -1, -1)),
    ]
    assert "Of 60 general questions 30 were right before, 20 are after." in damage_words(found)[1]
    box = boxed(section, reader_of([section]))
    table = box and box.worse()
    assert table is not None and len(table.rows) == 8 and table.notes == ["8 of 15, the worst of each kind."]


def test_a_difference_that_chance_explains_is_no_damage(tmp_path: Path) -> None:
    (section,) = sections([write_run(tmp_path / "run", general=29)])
    (general,) = (k for k in damage(section, section.methods[0], reader_of([section])).kept if k.of == "general")
    assert general.by_chance and general.extent == "none" and general.asked == 60


@pytest.mark.parametrize(
    ("questions", "spread", "seeds", "state", "says"),
    [
        (0, 0.0, 1, "not known", "how many questions were asked is not known here"),
        (5, 0.3, 1, "poorly", "5 questions about the forget rows and one run, too few to tell chance from fact"),
        (9, 1.0, 1, "poorly", "With other questions of this kind"),
        (40, 0.3, 1, "roughly", "It rests on 40 questions about the forget rows and one run."),
        (400, 0.3, 1, "roughly", "400 questions"),
        (400, 0.3, 3, "well", "3 runs with different seeds"),
    ],
)
def test_how_sure(questions: int, spread: float, seeds: int, state: str, says: str) -> None:
    rows = [row("npo", {SAID: 0.5}, seed=seed) for seed in range(seeds)]
    (section,) = compare([(Path("x"), each) for each in rows])
    records = {i: {"index": i, "rouge_l_recall": 0.5 + spread * (i % 2 - 0.5)} for i in range(questions)}
    found = certainty(section, section.methods[0], lambda _entry, _name: records)
    head, words = certainty_words(found)
    assert found.state == state and says in words and head
    assert not {"p-value", "interval", "confidence"} & set(words.split())
    if found.low is not None and found.high is not None:
        assert 0 <= found.low <= 0.5 <= found.high <= 1


def test_it_is_not_known_whether_it_would_come_back() -> None:
    section = section_of(("npo", GONE))
    assert would_return(section, section.methods[0]).state == "not tested"
    box = boxed(section, nothing)
    assert box is not None and sentence(box.items[3]).startswith("Not tested.")


@pytest.mark.parametrize(
    ("removal", "says"), [("weights", "were changed"), ("inference", "only suppressed"), (None, "Not k")]
)
def test_is_it_gone_from_the_weights(removal: str | None, says: str) -> None:
    section = section_of(("npo", GONE), removal=removal)
    assert says in removal_words(judge(section, section.methods[0]))[0]


# -- what next ---------------------------------------------------------------------------------------------------------

OWN = {"model": {"name": "some/model"}, "data": {"forget": "f", "retain": "r"}}
HERE = {"model": {"scratch": {}}, "benchmark": {"name": "tofu"}}
RATE = {"train": {"learning_rate": 2e-5, "num_train_epochs": 4}}
UNKNOWN = {**ALONE, "target": {**TARGET, SAID: 0.2, LIKELY: 0.1}}
RUINED = {**GONE, "retain_rouge_l_recall": 0.2}
OVER = {"stopped": {"why": "stopped after epoch 2, where retain probability .5 is under 0.9 of the target's .9"}}
WAY = (
    "of the way from the target's weights 30 % is kept (forget probability .5), since retain probability further on is"
)
BACK = {"stopped": {"why": f"the goal was not reached within the budget: {WAY} under 0.9 of the target's .9"}}


@pytest.mark.parametrize(
    ("recipe", "method", "metrics", "options", "command"),
    [
        (HERE, "npo+nll", GONE, UNKNOWN, "--finetune.epochs 60"),
        (OWN | {"finetune": {"epochs": 4}}, "npo+nll", GONE, UNKNOWN, "--finetune.epochs 8"),
        (OWN, "npo+nll", GONE, UNKNOWN, "--model MODEL"),
        (OWN | RATE, "npo+nll", RUINED, {}, "--train.learning_rate 1e-05"),
        (OWN | RATE, "npo", RUINED, {}, "--method npo+nll"),
        ({**OWN, "data": {"forget": "f"}}, "npo", RUINED, {}, "--retain FILE"),
        (OWN | RATE, "npo+nll", {SAID: 0.88, LIKELY: 0.78}, {}, "--train.learning_rate 4e-05"),
        (OWN, "npo+nll", {SAID: 0.88, LIKELY: 0.78}, {}, "--train.learning_rate 2e-05"),
        (OWN | RATE, "npo+nll", {SAID: 0.5, LIKELY: 0.5}, {}, "--train.num_train_epochs 8"),
        (
            OWN | RATE,
            "npo+nll",
            {SAID: 0.5, LIKELY: 0.5},
            OVER,
            "--train.learning_rate 1e-05 --train.num_train_epochs 8",
        ),
        (
            OWN | RATE,
            "npo+nll",
            {SAID: 0.5, LIKELY: 0.5},
            BACK,
            "--train.learning_rate 1e-05 --train.num_train_epochs 8",
        ),
        (OWN, "repselect", RUINED, {}, "--evaluate.utility_budget 0.95"),
        (OWN, "repselect", {SAID: 0.88, LIKELY: 0.78}, {}, "--method.forget.distance 0.6"),
        (OWN, "repselect", {SAID: 0.5, LIKELY: 0.5}, OVER, "--method npo+nll"),
        (OWN, "npo+nll", GONE, ALONE, "--retrained MODEL"),
        (OWN, "offset-npo+kl", GONE, {}, "--method uld_distilled"),
        (OWN, "npo+nll", GONE, {}, "chat runs/x/model"),
        (HERE, "npo+nll", GONE, {}, "--seeds 3"),
        ({}, "npo+nll", GONE, {}, "chat runs/x/model"),
    ],
)
def test_what_next(
    recipe: dict[str, Any], method: str, metrics: dict[str, float], options: dict[str, Any], command: str
) -> None:
    section = section_of((method, metrics), **options)
    (entry,) = section.methods
    advice = advise(judge(section, entry), entry, recipe)
    line = advice.command(entry.directory)
    assert line.startswith("expunge ") and command in line
    assert advice.words.endswith(":")
    if recipe.get("finetune") is None and "scratch" not in recipe.get("model", {}):
        assert "finetune" not in line + advice.words


@pytest.mark.parametrize("method", ["npo+nll", "uld", "uld_distilled", "ga", "offset-npo+kl", "repselect"])
@pytest.mark.parametrize("source", ["own", "taught", "here"])
@pytest.mark.parametrize("metrics", [GONE, RUINED, {SAID: 0.88, LIKELY: 0.78}, {SAID: 0.5, LIKELY: 0.5}])
def test_every_command_is_one_that_expunge_takes(
    tmp_path: Path, method: str, source: str, metrics: dict[str, float]
) -> None:
    """The command line takes every advised command; only the files that the reader must name are left out."""
    recipe = {
        "own": {**OWN, **RATE, "method": method},
        "taught": {**HERE, "model": {"name": "some/model"}, "finetune": {}, "method": method},
        "here": {**HERE, "methods": [method, "simnpo+nll"]},
    }[source]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    written = tree_of(load_recipe(tmp_path / "recipe.yaml"))
    every: list[dict[str, Any]] = [{}, ALONE, GOAL, UNKNOWN, {"retrained": {SAID: 0.88, LIKELY: 0.78}}]
    for options in every:
        section = section_of((method, metrics), folder=tmp_path, **options)
        (entry,) = section.methods
        command = advise(judge(section, entry), entry, written).command(tmp_path, method_meant(entry, written))
        words = shlex.split(command)
        if words[1] == "chat":
            continue
        assert words[:3] == ["expunge", "run", str(tmp_path / "recipe.yaml")]
        pairs = [(key.removeprefix("--"), value) for key, value in zip(words[3::2], words[4::2], strict=True)]
        load_recipe(tmp_path / "recipe.yaml", [pair for pair in pairs if pair[0] != "seeds"])


def test_of_several_methods_the_command_names_one() -> None:
    section = section_of(("npo+nll", {SAID: 0.88, LIKELY: 0.78}), ("mine", {SAID: 0.89, LIKELY: 0.79}))
    labelled = {"forget": {"name": "ga"}, "retain": {"name": "kl"}, "label": "mine"}
    recipe = OWN | {"methods": [{"forget": {"name": "npo"}, "retain": {"name": "nll"}}, labelled]}
    first, second = section.methods
    assert (method_meant(first, recipe), method_meant(second, recipe)) == ("npo+nll", "ga+kl")
    advice = advise(judge(section, first), first, recipe)
    assert "recipe.yaml --method npo+nll --train.learning_rate" in advice.command(Path("runs/x"), "npo+nll")


def test_of_several_methods_the_command_has_its_settings_and_names_its_model(tmp_path: Path) -> None:
    """`--method` takes the place of all methods of the recipe, and a teacher among them is then a folder."""
    forget = {"name": "uld_distilled", "alpha": 0.9, "teacher": "uld"}
    ours = {"forget": forget, "label": "mine", "train": {"num_train_epochs": 4}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**HERE, "methods": ["uld", ours]}))
    written = tree_of(load_recipe(tmp_path / "recipe.yaml"))
    section = section_of(("mine", {SAID: 0.5, LIKELY: 0.5}), folder=tmp_path)
    (entry,) = section.methods
    words = shlex.split(advise(judge(section, entry), entry, written).command(tmp_path, method_meant(entry, written)))
    (method,) = load_recipe(tmp_path / "recipe.yaml", [(words[3][2:], words[4]), (words[5][2:], words[6])]).methods
    assert method.name == "mine" and method.forget.model_dump(exclude_unset=True) == {
        **forget,
        "teacher": str(tmp_path / "uld"),
    }
    assert method.train.num_train_epochs == 8
    chat = Advice("Ask it:", verb="chat")
    assert chat.command(tmp_path, "ga", folder="mine") == f"expunge chat {tmp_path / 'mine' / 'model'}"


def test_of_several_methods_each_has_its_own_pace() -> None:
    section = section_of(("uld", RUINED), ("uld2", RUINED))
    forget = {"name": "uld", "learning_rate": 3e-3}
    recipe = HERE | {"methods": [{"forget": forget}, {"forget": {**forget, "learning_rate": 2e-3}, "label": "uld2"}]}
    rates = [advise(judge(section, entry), entry, recipe).keys for entry in section.methods]
    assert rates == [{"method.forget.learning_rate": "0.0015"}, {"method.forget.learning_rate": "0.001"}]


@pytest.mark.parametrize(
    "text",
    [
        "model: [1]\ntrain: {learning_rate: fast, num_train_epochs: -1}\nmethods: {a: 1}",
        "finetune: {epochs: many}\nmodel: {scratch: 3}\nmethods: [npo, 3, {forget: {name: [1]}, label: {}}]",
        "model: {name: 3}\ndata: no",
        "- a list",
        "a: [b",
        "\ta: \x00",
    ],
)
def test_a_recipe_that_is_none_spoils_no_report(tmp_path: Path, text: str) -> None:
    for name, metrics in {"much": RUINED, "no": {SAID: 0.88, LIKELY: 0.78}, "part": {SAID: 0.5, LIKELY: 0.5}}.items():
        for options in ({}, UNKNOWN):
            section = section_of(("npo+nll", metrics), folder=tmp_path, **options)
            (tmp_path / "recipe.yaml").write_text(text)
            box = boxed(section, nothing)
            assert box is not None and box.items[-1].command.startswith("expunge run"), name


def test_a_model_that_is_only_measured() -> None:
    for goal, state, command in ((0.16, "no", "run"), (0.9, "yes", "chat some/model")):
        section = section_of(retrained=None, goal=goal)
        (entry,) = section.entries
        judgement = judge(section, entry)
        assert judgement.forgotten.state == state and not judgement.unlearned
        assert command in advise(judgement, entry, OWN).command(entry.directory)
        box = boxed(section, nothing)
        assert box is not None and box.about == "This is about the model as it is."
        assert box.items[0].words.endswith("What it knew before is not known here.")


# -- the places where it stands ----------------------------------------------------------------------------------------


def test_the_answers_stand_before_any_table_and_say_the_same_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = write_run(tmp_path / "run")
    page = write_report([folder], tmp_path / "page.html").read_text(encoding="utf-8")
    body = page[page.index("<body>") :]
    assert body.index('<div class="box">') < body.index("<table") and body.index('class="box"') < body.index("<svg")
    written = write_markdown([folder], tmp_path / "page.md").read_text(encoding="utf-8")
    assert written.index("Is it forgotten?") < written.index("| method |")
    print_results(load_results(folder), str(folder), as_json=False)
    out = capsys.readouterr().out
    assert out.index("Is it forgotten?") < out.index("method")
    (section,) = sections([folder])
    box = boxed(section)
    assert box is not None
    for item in box.items:
        for place in (body, written, out):
            plain = " ".join(place.replace("&#39;", "'").replace("\\", "").split())  # a space that does not break, too
            assert " ".join(item.words.split()) in plain, item.key
    assert max(map(len, out.splitlines())) <= max(80, *(len(i.command) + 2 for i in box.items))


def test_the_answers_to_several_seeds_are_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    rows = []
    for seed in range(3):
        folder = write_run(tmp_path / f"seed={seed}")
        rows += [each | {"seed": seed} for each in load_results(folder)]
        (folder / "results.json").write_text(json.dumps(rows[-2:]))
    print_results(rows, str(tmp_path), as_json=False)
    out = capsys.readouterr().out
    assert out.count("Is it forgotten?") == 1
    assert "It rests on 20 questions about the forget rows and 3 runs with different seeds." in out


def test_headings_descend_one_level_at_a_time(tmp_path: Path) -> None:
    pages = [[write_run(tmp_path / "a")], [write_run(tmp_path / "b"), write_run(tmp_path / "c")]]
    for k, folders in enumerate(pages):
        page = write_report(folders, tmp_path / f"{k}.html").read_text(encoding="utf-8")
        levels = [int(level) for level in re.findall(r"<h(\d)", page)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_redacted_answers_keep_numbers_alone(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", redact=True)
    page = write_report([folder], tmp_path / "page.html", redact=True).read_text(encoding="utf-8")
    assert "Answers that got worse" in page and "general 20?" not in page and "row 20" in page


def test_a_row_holds_its_answers_as_states_numbers_and_words(tmp_path: Path) -> None:
    (section,) = sections([write_run(tmp_path / "run")])
    (entry,) = section.methods
    judgement = judge(section, entry, reader_of([section]))
    tree = json.loads(json.dumps(as_json(judgement, advise(judgement, entry, OWN))))
    assert list(tree) == ["forgotten", "damage", "removal", "returns", "certainty", "next"]
    assert tree["forgotten"]["state"] == "yes" and tree["forgotten"]["measures"][1]["goal"] == 0.16
    assert tree["damage"]["kept"][1] == {
        "of": "general", "metric": "general", "before": 0.5, "after": 20 / 60, "asked": 60, "worse": 10,
    }  # fmt: skip
    assert all(answer["words"] for answer in tree.values())
    assert not re.search(r"npo\+nll says|right \d|retain \d", json.dumps(tree)), "no text of a record"


def test_an_older_run_directory_still_reads(tmp_path: Path) -> None:
    """Neither goal, day nor verdict in its rows, no records and no recipe beside them."""
    rows = [row("target", TARGET), row("npo+nll", {**TARGET, **GONE})]
    for each in rows:
        for key in ("removal", "seconds", "trajectory"):
            each.pop(key)
    (tmp_path / "results.json").write_text(json.dumps(rows))
    page = write_report([tmp_path], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "It is not known how low is low enough" in page and "Measured on" not in page
    assert "how many questions were asked is not known here" in page
    assert "These results do not say how the method works." in page


@pytest.mark.parametrize("goal", [3, {"forget_probability": "low"}])
def test_a_goal_that_is_none_is_refused(tmp_path: Path, goal: Any) -> None:
    (tmp_path / "results.json").write_text(json.dumps([row("target", TARGET, goal=goal)]))
    with pytest.raises(UserError, match="row 1"):
        load_results(tmp_path)
