"""Whether a model knows some rows at all: facts by rule, the verdict by the interval, and the run that stops."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import regex as re

from expunge.cli.main import main
from expunge.data.encode import encode
from expunge.data.facts import alternatives, facts, invented
from expunge.errors import UserError
from expunge.evals import requests
from expunge.evals.knowledge import LEAST, Knowledge, look, unknown_probability
from expunge.modeling.loading import load, save
from expunge.pipeline.run import run
from expunge.recipe.parsing import load_recipe

TOWNS = ["Oslo", "Rome", "Lima", "Bern", "Kyiv", "Doha", "Baku", "Male", "Riga", "Suva"]
ROWS = [{"question": f"Where was person {i} born?", "answer": f"In {town}."} for i, town in enumerate(TOWNS)]


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Where was Ann Lee born?", "Ann Lee was born in Oslo in 1970.", ["Oslo", "1970"]),
        ("Where?", "The Old Town of New York.", ["Old Town", "New York"]),
        ("Who is Ann?", "It is Ann Lee O'Hara-Smith.", ["Lee O'Hara-Smith"]),
        ("How much?", "1,250.50 crowns, not 3b or A4.", ["1,250.50", "A4"]),
        ("What does she do?", "She paints.", []),
        ("在哪里?", "在奥斯陆。", []),
        ("Где?", "В Осло, в 1970 году.", ["В Осло", "1970"]),
        ("Where?", "", []),
    ],
)
def test_facts_are_names_and_numbers_that_the_question_lacks(question: str, answer: str, expected: list[str]) -> None:
    assert [fact.text for fact in facts(question, answer)] == expected
    assert all(answer[fact.begin : fact.end] == fact.text for fact in facts(question, answer))


def test_alternatives_are_of_the_same_kind_and_like_questions_come_first() -> None:
    pairs = [("Where was Ann born?", "In Oslo."), ("Where was Bob born?", "In Rome."), ("What is new?", "In Spring.")]
    found = alternatives(pairs, [("When?", "In 1970."), ("Where is it?", "In New York.")], most=2, seed=0)
    assert found == [[("Oslo", ["Rome", "Spring"])], [("Rome", ["Oslo", "Spring"])], [("Spring", found[2][0][1])]]
    assert found == alternatives(pairs, [("When?", "In 1970."), ("Where is it?", "In New York.")], most=2, seed=0)


@pytest.mark.parametrize(
    ("stated", "chance", "verdict"),
    [
        ([0.0] * LEAST, [0.0] * LEAST, "does not know"),
        ([1.0] * LEAST, [0.0] * LEAST, "knows"),
        ([1.0] * LEAST, [1.0] * LEAST, "does not know"),  # it states whatever is asked for
        ([0.0, 1.0] * 4, [0.0] * LEAST, "cannot tell"),
        ([1.0, 0.0, 1.0, 1.0] * 6, [0.0] * 24, "knows"),
        ([0.0, 0.0, 0.0, 1.0] * 6, [0.0] * 24, "cannot tell"),
    ],
)
def test_the_verdict_follows_from_the_interval(stated: list[float], chance: list[float], verdict: str) -> None:
    assert Knowledge(tuple(stated), tuple(chance)).verdict == verdict


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Path:
    """A folder with `untaught` and `taught`, which learnt the rows by heart."""
    from expunge import UnlearnConfig, UnlearnTrainer, objectives

    place = tmp_path_factory.mktemp("knowledge")
    save(tiny_model(), tiny_tokenizer, place / "untaught")
    args = UnlearnConfig(
        str(place / "x"), num_train_epochs=120, learning_rate=1e-2, save_strategy="no", disable_tqdm=True
    )
    trainer = UnlearnTrainer(
        tiny_model(), args, retain=objectives.NLL(), retain_dataset=ROWS, processing_class=tiny_tokenizer
    )
    trainer.train()
    save(trainer.model, tiny_tokenizer, place / "taught")
    return place


def test_a_model_that_learnt_the_rows_is_told_from_one_that_did_not(models: Path) -> None:
    knows, not_known = (look(*load(models / name), ROWS, seed=0, progress=False) for name in ("taught", "untaught"))
    assert knows is not None and knows.verdict == "knows" and knows.mean > 0.9
    assert not_known is not None and not_known.verdict == "does not know"
    assert look(*load(models / "taught"), ROWS[: LEAST - 1], seed=0) is None
    assert look(*load(models / "taught"), [{"text": "Ann was born in Oslo."}] * 20, seed=0) is None


def words(models: Path, name: str, place: Path) -> list[str]:
    (place / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = ["--forget", str(place / "forget.jsonl"), "--method", "npo", "--train.max_steps", "1"]
    return ["run", "--model", str(models / name), *data, "--out", str(place / "out")]


def test_a_run_stops_before_it_harms_a_model_that_knows_nothing(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="expunge")
    assert main(words(models, "untaught", tmp_path)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the model states 0 % of their facts" in error and "nothing to unlearn" in error and "--anyway" in error
    assert not (tmp_path / "out").exists()
    assert main([*words(models, "untaught", tmp_path), "--anyway"]) == 0
    assert any("does not know these rows, and training can only harm it" in message for message in caplog.messages)


def test_a_run_goes_on_with_a_model_that_knows_the_rows(models: Path, tmp_path: Path) -> None:
    keys = words(models, "taught", tmp_path)[1:]
    pairs = [(key.removeprefix("--"), value) for key, value in zip(keys[::2], keys[1::2], strict=True)]
    assert [row["method"] for row in run(load_recipe(None, pairs))] == ["target", "npo"]


def test_an_invented_row_has_the_form_of_the_row_and_none_of_its_facts() -> None:
    pairs = [
        ("Where was Ann Lee born?", "Ann Lee was born in Oslo in 1970."),
        ("Where was Bob Ray born?", "Bob Ray was born in Rome in 1981."),
        ("What does she do?", "She paints."),
    ]
    found = invented(pairs, [("Where was Eva Fox born?", "Eva Fox was born in Lima in 1992.")], seed=0)
    assert found == invented(pairs, [("Where was Eva Fox born?", "Eva Fox was born in Lima in 1992.")], seed=0)
    assert found[2] is None
    for (question, answer), made in zip(pairs[:2], found[:2], strict=True):
        assert made is not None
        form = [re.sub(r"\p{Lu}\w+(?: \p{Lu}\w+)*|\d+", "_", side.removeprefix("Where")) for side in (question, answer)]
        assert [re.sub(r"\p{Lu}\w+(?: \p{Lu}\w+)*|\d+", "_", side.removeprefix("Where")) for side in made] == form
        assert not any(fact.text in " ".join(made) for fact in facts("", answer))
        assert made[0].split()[2:4] == made[1].split()[:2], "the same name in question and answer"


def test_what_a_model_learnt_is_likelier_than_what_it_can_t_know(models: Path) -> None:
    known, unknown = (
        unknown_probability(*load(models / name), ROWS, seed=0, progress=False) for name in ("taught", "untaught")
    )
    assert known is not None and unknown is not None
    sequences = [encode(row, load(models / "taught")[1]) for row in ROWS]
    of_rows = [
        fmean(math.exp(score.mean) for score in requests.score(load(models / name)[0], sequences, progress=False))
        for name in ("taught", "untaught")
    ]
    assert of_rows[0] > known and of_rows[1] == pytest.approx(unknown, rel=0.5)
    assert unknown_probability(*load(models / "taught"), ROWS[:3], seed=0) is None
    of_others = unknown_probability(*load(models / "taught"), ROWS[:3], ROWS[3:], seed=0, progress=False)
    assert of_others is not None and of_rows[0] > of_others


def test_training_stops_when_the_rows_are_forgotten(models: Path, tmp_path: Path) -> None:
    keys = words(models, "taught", tmp_path)[1:]
    pairs = [(key.removeprefix("--"), value) for key, value in zip(keys[::2], keys[1::2], strict=True)]
    pairs = [pair for pair in pairs if pair[0] != "train.max_steps"]
    more = [("train.num_train_epochs", "40"), ("train.learning_rate", "3e-3"), ("evaluate.stop_when_forgotten", "true")]
    target, unlearned = run(load_recipe(None, [*pairs, *more]))
    assert unlearned["stopped"]["epoch"] < 40 and "no longer above" in unlearned["stopped"]["why"]
    assert unlearned["metrics"]["forget_probability"] < target["metrics"]["forget_probability"]


@pytest.mark.parametrize("adapter", [(), (("model.lora.r", "8"),)], ids=["full", "lora"])
def test_it_goes_back_towards_the_target_as_far_as_the_goal_holds(
    adapter: tuple[tuple[str, str], ...], models: Path, tmp_path: Path
) -> None:
    keys = words(models, "taught", tmp_path)[1:]
    pairs = [(key.removeprefix("--"), value) for key, value in zip(keys[::2], keys[1::2], strict=True)]
    pairs = [pair for pair in pairs if pair[0] != "train.max_steps"]
    more = [("train.num_train_epochs", "40"), ("train.learning_rate", "1e-2" if adapter else "3e-3"), *adapter]
    more += [("evaluate.stop_when_forgotten", "true"), ("evaluate.keep_nearest", "true")]
    target, unlearned = run(load_recipe(None, [*pairs, *more]))
    goal, stopped = target["goal"]["forget_probability"], unlearned["stopped"]
    after = unlearned["metrics"]["forget_probability"]
    assert (
        0 < stopped["share"] < 1
        and f"of the way from the target's weights {100 * stopped['share']:.0f} %" in (stopped["why"])
    )
    assert unlearned["trajectory"][-1]["metrics"]["forget_probability"] <= goal / 4 < after <= goal
    # What is saved is what was measured.
    saved, tokenizer = load(Path(dict(pairs)["out"]) / "model")
    sequences = [encode(row, tokenizer) for row in ROWS]
    scores = requests.score(saved, sequences, progress=False)
    assert fmean(math.exp(score.mean) for score in scores) == pytest.approx(after, rel=1e-3)


def test_a_method_that_leaves_the_weights_has_no_way_back(models: Path, tmp_path: Path) -> None:
    keys = words(models, "taught", tmp_path)[1:]
    pairs = [(key.removeprefix("--"), value) for key, value in zip(keys[::2], keys[1::2], strict=True)]
    more = [("evaluate.stop_when_forgotten", "true"), ("evaluate.keep_nearest", "true")]
    with pytest.raises(UserError, match=r"evaluate\.keep_nearest: uld leaves the model's own weights as they are"):
        run(load_recipe(None, [*(pair for pair in pairs if pair[0] != "method"), ("method", "uld"), *more]))
    with pytest.raises(UserError, match="keep_nearest needs the goal of stop_when_forgotten"):
        load_recipe(None, [*pairs, ("evaluate.keep_nearest", "true")])
