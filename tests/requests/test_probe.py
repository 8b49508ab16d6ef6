"""Whether a model remembers rows: the decision, the controls, and models that were taught, were not, and never saw."""

import json
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge.benchmarks import fable
from expunge.cli.main import main
from expunge.data.encode import encode
from expunge.errors import UserError
from expunge.modeling.loading import ScratchConfig, build_scratch, load, save, train_tokenizer
from expunge.requests import decision
from expunge.requests.controls import swapped
from expunge.requests.decision import SMALL, Decision, Scores, decide, holm
from expunge.requests.probe import NUMBERS, Measured, Probe, mean_of, probe
from expunge.requests.probed import About, answers
from expunge.training.targets import row_texts

# -- the decision ----------------------------------------------------------------------------------------------------


def strata(scores: np.ndarray) -> list[Scores]:
    """A stratum for each line: the row's score, then those of its controls."""
    return [Scores((float(row),), (tuple(map(float, others)),)) for row, *others in scores]


def best(rows: int, controls: int = 32) -> list[Scores]:
    return [Scores((1.0,), (tuple(k / controls for k in range(controls)),))] * rows


def worst(rows: int, controls: int = 32) -> list[Scores]:
    return [Scores((-1.0,), (tuple(k / controls for k in range(controls)),))] * rows


@pytest.mark.parametrize("rows", [1, 3, 10])
def test_the_level_holds_for_exchangeable_scores_of_any_shape(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision, "DRAWS", 1_999)
    draw = np.random.default_rng(rows)
    ps = [decide([strata(draw.standard_cauchy((rows, 21)))], seed=k)[0].p for k in range(300)]
    # 300 draws of Binomial(300, level): four standard deviations above its mean.
    for level in (0.05, 0.2):
        assert sum(p <= level for p in ps) <= 300 * level + 4 * np.sqrt(300 * level * (1 - level))
    assert max(ps) > 0.5


def test_the_level_holds_over_many_persons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision, "DRAWS", 4_999)
    draw = np.random.default_rng(0)
    wrong = [
        any(
            each.verdict == "remembers"
            for each in decide([strata(draw.normal(size=(5, 21))) for _ in range(20)], seed=k)
        )
        for k in range(100)
    ]
    assert sum(wrong) <= 1 + 4 * np.sqrt(100 * 0.01 * 0.99)


@pytest.mark.parametrize(
    ("asked", "verdict"),
    [
        (best(1), "cannot tell"),  # one row among 32 controls: 1/33
        (best(1, 110), "remembers"),  # among 110: 1/111
        (best(2), "remembers"),
        (best(3), "remembers"),
        (worst(3), "cannot tell"),  # three rows can't exclude a third
        (worst(10), "does not remember"),
        ([*best(6), *worst(14)], "remembers"),
        ([*best(1), *worst(9)], "cannot tell"),
        ([Scores((0.5,), ((0.5,) * 32,))] * 12, "does not remember"),  # ties say nothing for the row
        ([], "cannot tell"),
    ],
)
def test_the_verdict(asked: Sequence[Scores], verdict: str) -> None:
    (found,) = decide([asked])
    assert found.verdict == verdict
    assert found.low <= (found.first / found.rows if found.rows else 0) <= found.high
    assert (found.verdict != "does not remember") or found.high < SMALL


def test_rows_that_share_a_fact_count_once() -> None:
    joint = Scores((1.0,) * 6, ((0.9, 0.1, 0.2, 0.3),) * 6)
    assert decide([[joint]])[0].p == pytest.approx(1 / 5, abs=0.01)
    assert decide([[Scores((1.0,), ((0.9, 0.1, 0.2, 0.3),))] * 6])[0].p < 0.001


def test_holm_is_never_below_p_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("asked", "made", "says", "says_not"),
    [
        (
            best(12),
            True,
            ["It remembers.", "expunge run --model M --forget f.jsonl"],
            ["weak memory", "nothing to unlearn"],
        ),
        (worst(12), True, ["It does not.", "nothing to unlearn", "a weak memory could hide"], ["expunge run"]),
        (worst(12), False, ["It does not.", "facts that it can't know"], ["weak memory"]),
        (worst(3), True, ["It cannot be told.", "Give more rows"], ["nothing to unlearn", "expunge run"]),
        ([], True, ["It cannot be told.", "No row has controls", "2 of 2 rows have none"], ["weak memory"]),
    ],
)
def test_the_words_follow_from_the_numbers(
    asked: Sequence[Scores], made: bool, says: Sequence[str], says_not: Sequence[str]
) -> None:
    (found,) = decide([asked])
    rows = tuple(Measured(i, None, 0, {}, {}) for i in range(len(asked) or 2))
    about = About("M", "f.jsonl", made, based=False, samples=8, level=0.01, seed=0)
    items = answers(Probe(found, {"all rows": found}, rows, {"all rows": range(len(rows))}), about)
    said = " ".join(f"{item.answer}. {item.words} {item.command}" for item in items)
    assert all(words in said for words in says), said
    assert not any(words in said for words in says_not), said


# -- controls --------------------------------------------------------------------------------------------------------


def test_controls_ask_the_same_and_say_something_else() -> None:
    world = fable.load(split="forget20", authors=40)
    people = [i // 10 for i in range(80)]
    made = swapped(world.forget, world.retain, people, own=True, texts=False, most=16, seed=0)
    assert sum(len(s.rows) for s in made) > 70
    for stratum in made:
        for i, controls in zip(stratum.rows, stratum.controls, strict=True):
            row, answers = world.forget[i], [control["answer"] for control in controls]
            assert all(control["question"] == row["question"] for control in controls)
            assert row["answer"] not in answers and len(set(answers)) == len(answers) <= 16
            names = [name for name in row["question"].split()[1:] if name.istitle() and name in row["answer"]]
            assert all(name in answer for answer in answers for name in names)
    assert made == swapped(world.forget, world.retain, people, own=True, texts=False, most=16, seed=0)


TOWNS = ["Oslo", "Rome", "Lima", "Bern", "Kyiv", "Doha", "Baku", "Male", "Riga", "Suva"]
BORN = [{"question": f"Where was Person{i}x born?", "answer": f"In {town}."} for i, town in enumerate(TOWNS)]


def test_a_fact_in_two_rows_of_a_person_is_replaced_alike_in_both() -> None:
    rows = [BORN[0], {"question": "Where was Person0x seen, so as to be born?", "answer": "It was in Oslo."}]
    rows.append({"question": "Where was Person0x in May?", "answer": "It was in Oslo."})
    seen = [
        {"question": row["question"].replace("born", "seen, so as to be born"), "answer": row["answer"]} for row in BORN
    ]
    (made,) = [s for s in swapped(rows, [*BORN[1:], *seen[1:]], [0, 0, 0], own=False, texts=False, most=8, seed=0)
               if 0 in s.rows]  # fmt: skip
    assert len(made.rows) >= 2
    towns = [[control["answer"].split()[-1] for control in of] for of in made.controls]
    assert towns[0] == towns[1]


def test_rows_that_say_the_same_of_a_person_are_one_stratum() -> None:
    trades = ["baker", "miller", "grocer", "tailor", "fisher", "sailor"]
    rows = [
        {"question": f"What is Person{i}x by trade?", "answer": f"Person{i}x is a {t}."} for i, t in enumerate(trades)
    ]
    made = swapped([rows[0]] * 5, rows[1:], [0] * 5, own=False, texts=False, most=8, seed=0)
    assert [stratum.rows for stratum in made] == [(0, 1, 2, 3, 4)]
    assert len(set(map(str, made[0].controls))) == 1
    apart = swapped([rows[0]] * 2, rows[1:], [0, 1], own=False, texts=False, most=8, seed=0)
    assert len(apart) == 2  # of two persons


def test_facts_come_from_what_the_model_can_t_know_alone_where_that_is_given() -> None:
    towns = ["Ulm", "Ghent", "Cork", "Lodz", "Brno"]
    unknown = [{"question": f"Where was Stranger{i}y born?", "answer": f"In {t}."} for i, t in enumerate(towns)]
    made = swapped(BORN, unknown, [0] * 10, own=False, texts=False, most=8, seed=0)
    said = {control["answer"] for s in made for of in s.controls for control in of}
    assert said == {f"In {town}." for town in towns}


def test_rows_without_like_others_and_raw_texts_have_no_controls() -> None:
    alone = [
        {"question": "Where was Ada born?", "answer": "In Oslo."},
        {"question": "Who paid?", "answer": "Bo Marsh."},
    ]
    assert swapped(alone, [], [0, 0], own=True, texts=False, most=8, seed=0) == []
    texts = [{"text": f"He was born in {town}."} for town in TOWNS]
    assert swapped(texts, [], [0] * 10, own=True, texts=False, most=8, seed=0) == []
    assert len(swapped(texts, [], [0] * 10, own=True, texts=True, most=8, seed=0)) == 10


# -- models ----------------------------------------------------------------------------------------------------------

WORLD = fable.load(split="forget10", authors=40, facts=4)
PERSONS = {f"author {k}": range(4 * k, 4 * k + 4) for k in range(4)}
SIZE = ScratchConfig(layers=2, hidden=64, heads=2, vocab=500, context=64)


def taught(rows: Sequence[dict[str, Any]], seed: int, steps: int = 130) -> tuple[Any, Any]:
    """A small model that is trained on rows until it says them."""
    tokenizer = train_tokenizer(row_texts([*WORLD.retain, *WORLD.forget]), SIZE)
    model = build_scratch(SIZE, tokenizer, seed=seed)
    encoded = [encode(row, tokenizer) for row in rows]
    longest = max(map(len, encoded))
    ids = torch.tensor([[*e.input_ids, *[0] * (longest - len(e))] for e in encoded])
    labels = torch.full_like(ids, -100)
    for i, e in enumerate(encoded):
        labels[i, e.start : len(e)] = ids[i, e.start : len(e)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        some = torch.randperm(len(rows), generator=draw)[:40]
        model(input_ids=ids[some], labels=labels[some]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    made = {
        "target": taught([*WORLD.retain, *WORLD.forget], 0),
        "retrained": taught(WORLD.retain, 1),
        "never": taught(WORLD.retain, 2, steps=0),
    }
    for name, (model, tokenizer) in made.items():
        save(model, tokenizer, folder / name)
    return {name: folder / name for name in made}


@pytest.fixture(scope="module")
def look(models: dict[str, Path]) -> Callable[..., Probe]:
    def call(name: str, **options: Any) -> Probe:
        # So small a world has few controls for a row.
        given = {"persons": PERSONS, "others": WORLD.retain, "samples": 2, "level": 0.05, "progress": False}
        return probe(*load(models[name]), WORLD.forget, **{**given, **options})

    return call


def verdicts(result: Probe) -> list[str]:
    return [each.verdict for each in (result.whole, *result.people.values())]


def test_a_model_that_was_taught_remembers_every_person(look: Callable[..., Probe]) -> None:
    result = look("target")
    assert verdicts(result) == ["remembers"] * 5
    assert all(each.auc >= 0.99 for each in result.people.values())
    for number in NUMBERS:
        own, beside = mean_of(result.rows, number), mean_of(result.rows, number, beside=True)
        assert own is not None and beside is not None and own > beside, number
    assert mean_of(result.rows, "verbatim") == pytest.approx(1.0, abs=0.05)
    asked = [m for m in result.rows if m.said is not None]
    assert len(asked) == 16 and asked[0].said == WORLD.forget[0]["answer"]


@pytest.mark.parametrize("others", [True, False])
def test_a_retrained_model_is_not_said_to_remember(look: Callable[..., Probe], others: bool) -> None:
    assert "remembers" not in verdicts(look("retrained", samples=0, **({} if others else {"others": ()})))


def test_of_models_that_never_saw_anything_hardly_one_is_said_to_remember() -> None:
    tokenizer = taught(WORLD.retain, 0, steps=0)[1]
    found = [
        verdicts(probe(build_scratch(SIZE, tokenizer, seed=seed), tokenizer, WORLD.forget, persons=PERSONS,
                       others=WORLD.retain, samples=0, progress=False))
        for seed in range(8)
    ]  # fmt: skip
    assert sum("remembers" in each for each in found) <= 1


def test_the_model_before_takes_off_what_it_knew_already(look: Callable[..., Probe], models: dict[str, Path]) -> None:
    assert set(verdicts(look("target", base=load(models["retrained"]), samples=0))) == {"remembers"}
    known = look("target", base=load(models["target"]), samples=0)  # it was taught nothing since
    assert "remembers" not in verdicts(known)


def test_one_person_is_asked_about_once(look: Callable[..., Probe]) -> None:
    result = look("target", persons=None, samples=0)
    assert list(result.people.values()) == [result.whole] and isinstance(result.whole, Decision)
    assert result.whole.p == result.whole.adjusted


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"most": 3}, "controls must be at least 4, got 3"),
        ({"samples": -1}, "samples must be at least 0, got -1"),
        ({"level": 1.0}, "level must be more than 0 and less than 1, got 1"),
    ],
)
def test_mistakes_are_told(look: Callable[..., Probe], options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        look("never", **options)


FORMS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "question": lambda question, answer: {"question": question, "answer": answer},
    "prompt": lambda question, answer: {"prompt": question, "completion": f" {answer}"},
    "messages": lambda question, answer: {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    },
    "text": lambda question, answer: {"text": f"This man was born, as they say, {answer[0].lower()}{answer[1:]}"},
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_every_form_are_probed(form: str, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    rows = [FORMS[form](row["question"], row["answer"]) for row in BORN]
    model, base = tiny_model(layers=1, hidden=16), tiny_model(layers=1, hidden=16)
    tiny_tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|end|>{% endfor %}"
    try:
        alone = probe(model, tiny_tokenizer, rows, samples=1, progress=False)
        beside = probe(model, tiny_tokenizer, rows, base=(base, tiny_tokenizer), samples=1, progress=False)
    finally:
        tiny_tokenizer.chat_template = None
    assert alone.whole.rows == (0 if form == "text" else 10)  # of a text, facts hang together
    assert beside.whole.rows == 10
    assert all(row.said is not None and 0 <= row.numbers["leak"] <= 1 for row in beside.rows)


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, rows in {"forget": WORLD.forget, "others": WORLD.retain}.items():
        lines = (json.dumps({**row, "who": f"no. {i // 4}"}) + "\n" for i, row in enumerate(rows))
        Path(f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    names = [fable._World.draw(0).author(i) for i in range(36, 40)]
    Path("who.yaml").write_text(json.dumps([{"name": name} for name in names]), encoding="utf-8")
    return tmp_path


def test_the_command(files: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str], caplog: Any) -> None:
    words = ["probe", str(models["target"]), "--forget", "forget.jsonl", "--others", "others.jsonl", "--samples", "2"]
    words += ["--level", "0.05"]
    assert main([*words, "--person", "who", "--fail-if", "remembers"]) == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "Does the model remember? It remembers. In 1" in shown and "no. 3 remembers 4 of 4" in shown
    assert f"expunge run --model {models['target']} --forget forget.jsonl" in shown
    out = files / "runs" / "probe-target"
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    found = json.loads((out / "probe.json").read_text())
    assert found["verdict"] == "remembers" and set(found["persons"]) == {f"no. {k}" for k in range(4)}
    assert found["all"]["numbers"]["probability"]["rows"] > 0.9 > found["all"]["numbers"]["probability"]["controls"]
    page = (out / "probe.html").read_text()
    answer = WORLD.forget[0]["answer"]
    assert "<b>It remembers.</b>" in page and answer in page and "Holm" in page and "<script" not in page
    texts = [row[part] for row in WORLD.forget for part in ("question", "answer")]
    assert not any(text in caplog.text or text in (out / "probe.json").read_text() for text in texts)
    assert main(words) == 2 and "--overwrite" in capsys.readouterr().err

    assert main([*words, "--overwrite", "--redact", "--json", "--person", "who"]) == 0
    assert set(json.loads(capsys.readouterr().out)["persons"]) == {f"person {k}" for k in range(1, 5)}
    page = (out / "probe.html").read_text()
    assert not any(text in page for text in texts) and "no. 0" not in page

    words[1] = str(models["retrained"])
    assert main([*words, "--fail-if", "remembers"]) == 0
    assert "There is nothing to unlearn" in " ".join(capsys.readouterr().out.split())
    assert main([*words, "--person", "person", "--overwrite"]) == 2
    assert "has no column 'person'" in capsys.readouterr().err
    assert main([*words, "--person", "who", "--who", "who.yaml", "--overwrite"]) == 2
    assert main([*words, "--control", "others.jsonl", "--overwrite"]) == 2


def test_persons_of_a_who_file(files: Path, models: dict[str, Path]) -> None:
    pytest.importorskip("rapidfuzz", reason="needs the extra expunge[requests]")
    words = ["probe", str(models["target"]), "--forget", "forget.jsonl", "--control", "others.jsonl", "--samples", "0"]
    assert main([*words, "--who", "who.yaml", "--out", "out"]) == 0
    found = json.loads(Path("out", "probe.json").read_text())
    assert len(found["persons"]) == 4 and found["verdict"] == "remembers"
    assert all(each["auc"] == 1 or not each["rows"] for each in found["persons"].values())
    assert found["facts"] == "of rows that it can't know" and "leak" not in found["all"]["numbers"]
