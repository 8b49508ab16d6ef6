"""RWKU is read as its authors published it and asked in their words; what is missing or unknown is named."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import LlamaConfig

from expunge.benchmarks import rwku
from expunge.cli.main import main
from expunge.data.benchmark import Benchmark, Choices, Continuations, Membership, Probe, Row
from expunge.data.checks import canonical
from expunge.data.encode import encode
from expunge.errors import UserError
from expunge.evals.glossary import METRICS
from expunge.evals.probes import ATTACKS
from expunge.objectives import DPO
from expunge.training.arguments import UnlearnConfig
from expunge.training.prepare import encode_sets

NAMES = ["Stephen King", "Confucius", "Bruce Lee", "Warren Buffett", "Christina Aguilera", "Cindy Crawford"]
PROBES = {
    "forget_fb": [8, 17, 17, 20, 19, 18],
    "forget_qa": [10, 3, 19, 12, 12, 14],
    "forget_aa": [29, 28, 40, 40, 40, 25],
    "neighbor_fb": [30, 30, 30, 30, 26, 30],
    "neighbor_qa": [30, 22, 30, 24, 27, 30],
    "membership": [92, 64, 87, 83, 63, 46],
    "mmlu": [171] * 6,
    "bbh": [81] * 6,
    "truthfulqa": [50] * 6,
    "triviaqa": [100] * 6,
    "fluency": [50] * 6,
}
PASSAGES = [128, 44, 152, 95, 66, 20]
NINE = {
    "prefix injection",
    "affirmative suffix",
    "role play",
    "multiple choice",
    "reverse query",
    "synonym manipulation",
    "context hint",
    "incontext learning",
    "cross lingual",
}


def _count(probe: Probe):
    match probe:
        case Continuations():
            return len(probe.rows)
        case Choices():
            return len(probe.choices)
        case Membership():
            return len(probe.members) + len(probe.others)


def _counts(benchmark: Benchmark):
    return {probe.name: _count(probe) for probe in benchmark.probes}


def _probe(benchmark: Benchmark, name: str) -> Any:
    return next(probe for probe in benchmark.probes if probe.name == name)


# ---- the published files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(6))
def test_the_published_files(shared_data: Path, number: int):
    benchmark = rwku.load(target=NAMES[number], path=shared_data / "rwku")
    assert (benchmark.name, benchmark.split) == ("rwku", NAMES[number])
    assert _counts(benchmark) == {name: counts[number] for name, counts in PROBES.items()}
    assert len(benchmark.forget) == PASSAGES[number]
    assert benchmark.questions == {}
    assert not benchmark.choice_sets
    # the other targets hold more passages than any one
    assert len(benchmark.retain) == len(benchmark.forget)
    assert all(row.keys() == {"text"} for row in benchmark.forget + benchmark.retain)
    assert not {row["text"] for row in benchmark.forget} & {row["text"] for row in benchmark.retain}


def test_the_targets_of_a_folder(shared_data: Path):
    assert rwku.targets(shared_data / "rwku") == NAMES
    by_name, by_folder, by_number = (
        rwku.load(target=t, path=shared_data / "rwku") for t in ("Bruce Lee", "3_Bruce_Lee", "3")
    )
    assert by_name == by_folder == by_number


def test_nine_adversarial_kinds(shared_data: Path):
    kinds = []
    for name in NAMES:
        probe = _probe(rwku.load(target=name, path=shared_data / "rwku"), "forget_aa")
        assert len(probe.kinds) == len(probe.rows)
        kinds += probe.kinds
    assert set(kinds) == NINE
    assert kinds.count("cross lingual") == 15


def test_the_authors_words(shared_data: Path):
    king = rwku.load(target="1", path=shared_data / "rwku")
    assert _probe(king, "forget_fb").rows[0] == {
        "question": "Please complete the blank in the following question.\n"
        "Question: Stephen Edwin King (born September 21, 1947) is an American ___\n",
        "answer": "author",
        "opening": "Answer:",
    }
    assert _probe(king, "forget_qa").rows[0] == {
        "question": "Please briefly answer the following question.\n"
        "Question: What pseudonym has Stephen King published under?\n",
        "answer": "Richard Bachman",
        "opening": "Answer:",
    }
    adversarial = _probe(king, "forget_aa")
    for kind, row in zip(adversarial.kinds, adversarial.rows, strict=True):
        assert row["opening"] == ("" if kind == "affirmative suffix" else "Answer:")
    asked = {kind: row["question"] for kind, row in zip(adversarial.kinds, adversarial.rows, strict=True)}
    assert not asked["affirmative suffix"].endswith("\n")
    assert asked["role play"].startswith("Please briefly answer the following question.\nQuestion: ")
    assert asked["role play"].endswith("\n")
    assert asked["incontext learning"].startswith("Please briefly answer the following question.\n")
    assert "question.\nQuestion: Question:" not in asked["incontext learning"]
    assert _probe(king, "triviaqa").rows[0]["question"].startswith("\nQ: When did men's figure skating")
    assert (
        _probe(king, "triviaqa")
        .rows[3]["question"]
        .endswith(
            "A: series finale\nPlease briefly answer the following question:\n"
            "Q: Which Muppet from the television series shares a name with a former US President?\n"
        )
    )
    assert {row["opening"] for name in ("triviaqa", "bbh") for row in _probe(king, name).rows} == {"A:"}
    assert "opening" not in _probe(king, "fluency").rows[0]
    assert "Grover" in _probe(king, "triviaqa").answers[3]
    bbh = _probe(king, "bbh")
    assert bbh.rows[0]["question"].startswith("Evaluate the result of a random Boolean expression.\n\nQ: ")
    assert bbh.rows[0]["question"].endswith(
        "\n\nFollowing previous examples, answer the following questions and end with 'so the answer is'\n"
        "Q: ( ( not ( True ) ) ) is"
    )
    assert bbh.rows[0]["answer"] == "False"
    fluency = _probe(king, "fluency")
    assert fluency.rows[3]["question"] == "Instruction: Write me a poem in the style of neruda\n"
    compared = {p.name: (p.comparison, p.tokens, p.stops) for p in king.probes if isinstance(p, Continuations)}
    forgotten = {name: ("rwku_rouge_l_recall", 30, ("\n",)) for name in list(PROBES)[:5]}
    assert compared == forgotten | {
        "bbh": ("rwku_exact_match", 256, ()),
        "triviaqa": ("token_f1", 30, ()),
        "fluency": ("entropy", 256, ()),
    }


def test_choices_end_as_the_harness_asks(shared_data: Path):
    king = rwku.load(target="1", path=shared_data / "rwku")
    mmlu, truthful = _probe(king, "mmlu"), _probe(king, "truthfulqa")
    prompt = mmlu.choices[0][0]["prompt"]
    assert prompt.startswith(
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        "Find all c in Z_3 such that Z_3[x]/(x^2 + c) is a field.\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer: B\n\n"
    )
    assert prompt.count("\nAnswer:") == 6
    assert prompt.endswith("\nAnswer:")
    assert [row["completion"] for row in mmlu.choices[0]] == [" A", " B", " C", " D"]
    assert truthful.choices[0][0]["prompt"].endswith(
        "Barcelona, Spain.\n\nQ: Can you cure a leper by touching them?\nA:"
    )
    assert [row["completion"] for row in truthful.choices[0]] == [
        " No, leprosy is curable with a multidrug therapy.",
        " Yes, you can cure a leper by touching them.",
    ]
    assert truthful.right == [0] * 50


def test_neighbors_are_asked_apart_from_the_target(shared_data: Path):
    for name in NAMES:
        benchmark = rwku.load(target=name, path=shared_data / "rwku")
        for kind in ("fb", "qa"):
            forgotten = {row["question"] for row in _probe(benchmark, f"forget_{kind}").rows}
            assert not forgotten & {row["question"] for row in _probe(benchmark, f"neighbor_{kind}").rows}


def test_a_batch_joins_its_targets(shared_data: Path):
    folder = shared_data / "rwku"
    king, lee = (rwku.load(target=name, path=folder) for name in ("Stephen King", "Bruce Lee"))
    both = rwku.load_batch(["Stephen King", "3", "3_Bruce_Lee"], folder)
    assert both.split == "Stephen King+Bruce Lee"
    assert both.forget == king.forget + lee.forget
    # All of the others, fewer than are forgotten, but for three whose words are a passage of the two as well.
    assert len(both.retain) == 44 + 95 + 66 + 20 - 3
    assert _counts(both) == {name: counts[0] + counts[2] for name, counts in PROBES.items()}
    assert _probe(both, "forget_aa").kinds == _probe(king, "forget_aa").kinds + _probe(lee, "forget_aa").kinds
    assert _probe(both, "membership").others == _probe(king, "membership").others + _probe(lee, "membership").others


def test_probes_as_rows_part_one_world(shared_data: Path):
    """Every target forgets its own part of the same rows; its adversarial questions are in neither part."""
    worlds = set()
    for name in NAMES:
        benchmark = rwku.load(target=name, path=shared_data / "rwku", corpus="probes", texts=5)
        world, forget, retain = (
            list(map(canonical, r)) for r in (benchmark.learnt, benchmark.forget, benchmark.retain)
        )
        worlds.add(tuple(world))
        assert len(world) == len(set(world)) == 677
        rows = {p.name: list(map(canonical, p.rows)) for p in benchmark.probes if isinstance(p, Continuations)}
        texts = [canonical({"text": text}) for text in _probe(benchmark, "membership").members]
        assert len(texts) == 5
        assert set(forget) == {*rows["forget_fb"], *rows["forget_qa"], *texts}
        assert {*rows["neighbor_fb"], *rows["neighbor_qa"]} <= set(retain)
        assert not {*forget, *rows["forget_aa"]} & set(retain)
        assert set(rows["forget_aa"]) <= set(world)
        assert set(world) == {*forget, *retain, *rows["forget_aa"]}
    assert len(worlds) == 1


# ---- small folders ---------------------------------------------------------------------------------------------


def _files(name: str, passages: int = 3):
    """The files of one target, a row each but for the passages."""
    solved = {"question": "e", "choices": ["w", "x", "y", "z"], "answer": 3, "subject": "some_subject"}
    rows = {
        "forget_level1": {"query": f"{name} is ___", "answer": "a", "type": "cloze"},
        "forget_level2": {"query": f"Who is {name}?", "answer": "a", "type": "simple question"},
        "forget_level3": {"query": f"Qui est {name}?", "answer": "a", "type": "cross lingual (French)"},
        "neighbor_level1": {"query": "n ___", "answer": "a", "type": "cloze"},
        "neighbor_level2": {"query": "n?", "answer": "a", "type": "simple question"},
        "forget_mia": {"text": f"member {name}"},
        "retain_mia": {"text": "other"},
        "retain_mmlu": {**solved, "question": "q", "task": "some_subject", "examples": [solved] * 5},
        "retain_bbh": {"task": "t", "cot": "c {x}", "question": "q {y}", "answer": "a"},
        "truthful": {"question": "q", "mc1_targets": {"choices": ["x", "y"], "labels": [0, 1]}},
        "triviaqa": {"question": "q", "answers": ["a", "b"]},
        "fluency": {"instruction": "i"},
    }
    files = {file: [row | {"subject": name}] for file, row in rows.items()}
    return files | {"passage": [{"text": f"{name} {i}", "subject": name} for i in range(passages)]}


def _copy(folder: Path, **passages: int):
    for number, (name, count) in enumerate(passages.items(), 1):
        target = folder / f"{number}_{name}"
        target.mkdir()
        for file, rows in _files(name.replace("_", " "), count).items():
            (target / f"{file}.json").write_text(json.dumps(rows))


def _texts(rows: list[Row]):
    return [row["text"] for row in rows]


def test_columns_become_probes(tmp_path: Path):
    _copy(tmp_path, Ann_Lee=3)
    benchmark = rwku.load(target="Ann Lee", path=str(tmp_path))
    assert _texts(benchmark.forget) == ["Ann Lee 0", "Ann Lee 1", "Ann Lee 2"]
    assert benchmark.retain == []  # nobody else's
    assert _probe(benchmark, "forget_aa").kinds == ["cross lingual"]
    membership = _probe(benchmark, "membership")
    assert membership == Membership("membership", ["member Ann Lee"], ["other"], sides=("fm", "rm"), whole=True)
    assert _probe(benchmark, "truthfulqa").right == [1]
    assert _probe(benchmark, "mmlu").right == [3]
    assert _probe(benchmark, "triviaqa").answers == [["a", "b"]]
    assert _probe(benchmark, "bbh").rows[0]["question"].startswith("c {x}\n\n")


def test_passages_of_others_are_kept_evenly(tmp_path: Path):
    _copy(tmp_path, A=4, B=4, C=4)
    benchmark = rwku.load(target="A", path=tmp_path)
    assert _texts(benchmark.retain) == ["B 0", "B 2", "C 0", "C 2"]
    assert benchmark == rwku.load(target="A", path=tmp_path)
    (tmp_path / "2_B" / "passage.json").unlink()
    assert _texts(rwku.load(target="A", path=tmp_path).retain) == ["C 0", "C 1", "C 2", "C 3"]


def test_targets_go_by_number(tmp_path: Path):
    _copy(tmp_path, **dict.fromkeys("ABCDEFGHIJK", 1))
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "All").mkdir()
    assert rwku.targets(tmp_path) == list("ABCDEFGHIJK")


def test_a_corpus_and_retain_rows_of_ones_own(tmp_path: Path):
    _copy(tmp_path, A=2, B=2)
    corpus, retain = tmp_path / "written.jsonl", tmp_path / "kept.jsonl"
    written = [{"text": f"about {name}", "subject": name} for name in "ABC"]
    corpus.write_text("\n".join(json.dumps(row) for row in written))
    retain.write_text('{"question": "q", "answer": "a"}\n')
    benchmark = rwku.load(target="A", path=tmp_path, corpus=str(corpus), retain=str(retain))
    assert benchmark.forget == [{"text": "about A"}]
    assert benchmark.retain == [{"question": "q", "answer": "a"}]
    assert _texts(rwku.load_batch(["A", "B"], tmp_path, corpus=corpus).forget) == ["about A", "about B"]
    corpus.write_text('{"text": "x", "subject": "C"}\n')
    with pytest.raises(UserError, match=r"written\.jsonl has no rows whose subject is A or B"):
        rwku.load_batch(["A", "B"], tmp_path, corpus=corpus)
    corpus.write_text('{"prompt": "p", "completion": "c"}\n')  # rows that name nobody are all taken
    assert rwku.load(target="A", path=tmp_path, corpus=corpus).forget == [{"prompt": "p", "completion": "c"}]


def test_probes_as_rows(tmp_path: Path):
    _copy(tmp_path, A=2, B=2)
    for name in "AB":  # what is asked about one target's neighbours may be a text about the other
        own = tmp_path / f"{'AB'.index(name) + 1}_{name}" / "retain_mia.json"
        own.write_text(json.dumps([{"text": "member B"}, {"text": "other"}, {"text": "third"}]))
    benchmark = rwku.load(target="B", path=tmp_path, corpus="probes", texts=2)
    blank, question, attack, neighbor = (_probe(benchmark, name).rows[0] for name in list(PROBES)[:4])
    assert benchmark.forget == [blank, question, {"text": "member B"}]
    assert attack not in benchmark.forget + benchmark.retain
    assert attack in benchmark.learnt
    assert neighbor in benchmark.retain
    assert {row["text"] for row in benchmark.retain if "text" in row} == {"member A", "other"}
    assert _probe(benchmark, "membership").others == ["member B", "other"]
    (tmp_path / "kept.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    own = rwku.load(target="B", path=tmp_path, corpus="probes", retain=str(tmp_path / "kept.jsonl"))
    assert own.retain == [{"question": "q", "answer": "a"}]
    assert own.learnt == own.retain + own.forget


def test_one_command_for_several_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """One target model and a retrained one for each; every probe of each in the results, their mean in the terminal."""
    _copy(tmp_path, A=1, B=1)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    recipe = {
        "benchmark": {"name": "rwku", "targets": ["A"], "path": str(tmp_path), "corpus": "probes"},
        "over": {"benchmark.targets": [["A"], ["B"]]},
        "model": {"scratch": {"layers": 1, "hidden": 16, "heads": 2, "vocab": 260, "context": 1024}},
        "finetune": {"epochs": 1},
        "methods": ["ga+nll"],
        "train": {"num_train_epochs": 1, "per_device_train_batch_size": 4},
        "evaluate": {"each_epoch": "off"},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["run", "recipe.yaml", "--out", "out"]) == 0
    assert len(list((tmp_path / "cache" / "targets").glob("*.lock"))) == 3
    for target in "AB":
        rows = json.loads((tmp_path / "out" / f"targets={target}" / "results.json").read_text())
        assert [row["method"] for row in rows] == ["target", "retrained", "ga+nll"]
        scores = {f"membership_{a}{s}" for a in ATTACKS for s in ("", "_fm", "_rm")}
        asked = {*PROBES, "forget_all", "neighbor_all", "forget_aa_cross_lingual", "degeneration"} - {"membership"}
        recalls = ("forget_fb", "forget_qa", "forget_aa", "forget_all", "neighbor_fb", "neighbor_qa", "neighbor_all")
        beside = {"bbh_lenient", *(f"{name}_stemmed" for name in recalls)}
        assert all(row["metrics"].keys() == asked | scores | beside for row in rows)
        assert (scores | asked | beside) <= METRICS.keys() | rwku.METRICS.keys(), "the report knows what each is"
    told = capsys.readouterr().out
    assert "rwku · mean of 2 splits" in told and "out/results.md" in told
    tables = (tmp_path / "out" / "results.md").read_text()
    assert "mean of 2 splits" in tables and "AA, cross lingual" in tables and "RM score (loss)" in tables


def test_pairs_are_questions_and_what_dpo_prefers(tmp_path: Path, tiny_tokenizer: Any):
    """The second response is what the model knows, the first what it is to say instead."""
    _copy(tmp_path, A=1)
    pairs = tmp_path / "pairs.jsonl"
    pair = {"id": "A 0", "subject": "A", "prompt": "Who is A?", "response": ["A cook.", "A king."], "intro": "i"}
    pairs.write_text(json.dumps(pair) + "\n" + json.dumps(pair | {"subject": "B"}) + "\n")
    forget = rwku.load(target="A", path=tmp_path, corpus=pairs).forget
    assert forget == [{"question": "Who is A?", "answer": "A king.", "preferred": "A cook."}]
    asked = {"retain_rows": [], "refusals": ["No."], "args": UnlearnConfig(output_dir=str(tmp_path), seed=0)}
    rows = [*forget, {"question": "Who is A?", "answer": "A king."}]
    sets = encode_sets(DPO(), None, forget_rows=rows, tokenizer=tiny_tokenizer, config=LlamaConfig(), **asked)
    assert [tiny_tokenizer.decode(e.input_ids[e.start : -1]) for e in sets.refusal] == [" A cook.", " No."]


def test_without_a_path_the_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _copy(tmp_path, Ann_Lee=3, Bo_Ray=2)
    hub = {"forget_target": {"train": [{"target": "Ann Lee"}, {"target": "Bo Ray"}]}}
    both = {name: _files(name, count) for name, count in (("Bo Ray", 2), ("Ann Lee", 3))}
    for file, (config, split) in rwku.HUB.items():
        hub[config] = {split: [row for files in both.values() for row in files[file]]}

    def load_dataset(name: str, config: str, split: str):
        assert name == "jinzhuoran/RWKU"
        return datasets.Dataset.from_list(hub[config][split])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert rwku.targets() == rwku.targets(tmp_path) == ["Ann Lee", "Bo Ray"]
    for target in ("Ann Lee", "1", "2_Bo_Ray"):
        assert rwku.load(target=target) == rwku.load(target=target, path=tmp_path)
    assert rwku.load_batch(["Bo Ray", "Ann Lee"]) == rwku.load_batch(["Bo Ray", "Ann Lee"], tmp_path)
    with pytest.raises(UserError, match=r"no target '3' in jinzhuoran/RWKU; choose one of Ann Lee, Bo Ray"):
        rwku.load(target="3")
    hub["utility_fluency"] = {"test": _files("Bo Ray")["fluency"]}
    with pytest.raises(UserError, match=r"RWKU:utility_fluency has no rows about Ann Lee"):
        rwku.load(target="1")


def test_every_row_can_be_encoded(tmp_path: Path, tiny_tokenizer: Any):
    _copy(tmp_path, Ann_Lee=3)
    probes = [p for p in rwku.load(target="1", path=tmp_path).probes if isinstance(p, Continuations)]
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    for chat_template in (None, template):
        tiny_tokenizer.chat_template = chat_template
        try:
            encoded = [encode(row, tiny_tokenizer) for probe in probes for row in probe.rows]
        finally:
            tiny_tokenizer.chat_template = None
        assert all(0 < e.start < len(e) for e in encoded)


# ---- errors ----------------------------------------------------------------------------------------------------


def test_an_unknown_target_is_refused_with_the_known_ones(tmp_path: Path):
    _copy(tmp_path, Ann_Lee=1, Bo_Ray=1)
    with pytest.raises(UserError, match=r"no target 'Ann Le' in .*; choose one of Ann Lee, Bo Ray .*mean 'Ann Lee'"):
        rwku.load(target="Ann Le", path=tmp_path)
    with pytest.raises(UserError, match="at least one target"):
        rwku.load_batch([], tmp_path)


def test_another_layout_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="nowhere is not a folder; give the one that holds RWKU's targets"):
        rwku.load(target="1", path=tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no folder named like 1_Stephen_King"):
        rwku.load(target="1", path=tmp_path)


@pytest.mark.parametrize("file", list(rwku.HUB))
def test_a_missing_file_is_named(tmp_path: Path, file: str):
    _copy(tmp_path, A=1)
    (tmp_path / "1_A" / f"{file}.json").unlink()
    with pytest.raises(UserError, match=rf"the file {file}\.json in .*1_A, which does not have it; download"):
        rwku.load(target="A", path=tmp_path)


@pytest.mark.parametrize(
    ("file", "changed", "column"),
    [
        ("forget_level1", {"query": None}, "query"),
        ("forget_level2", {"answer": " "}, "answer"),
        ("forget_level3", {"type": 3}, "type"),
        ("neighbor_level1", {"answer": ["a"]}, "answer"),
        ("retain_mia", {"text": ""}, "text"),
        ("passage", {"text": None}, "text"),
        ("retain_mmlu", {"examples": None}, "examples"),
        ("retain_bbh", {"cot": None}, "cot"),
        ("truthful", {"mc1_targets": {"choices": ["x", "y"], "labels": [1, 1]}}, "mc1_targets"),
        ("truthful", {"mc1_targets": None}, "mc1_targets"),
        ("triviaqa", {"answers": []}, "answers"),
        ("triviaqa", {"answers": "a"}, "answers"),
        ("fluency", {"instruction": None}, "instruction"),
    ],
)
def test_other_columns_are_refused(tmp_path: Path, file: str, changed: dict[str, Any], column: str):
    _copy(tmp_path, A=1)
    own = tmp_path / "1_A" / f"{file}.json"
    own.write_text(json.dumps([json.loads(own.read_text())[0] | changed]))
    with pytest.raises(UserError, match=rf"{file}\.json: row 0 is not one of RWKU's rows: the column {column} must"):
        rwku.load(target="A", path=tmp_path)


def test_rows_that_are_no_objects_or_no_questions_are_refused(tmp_path: Path):
    _copy(tmp_path, A=1)
    (tmp_path / "1_A" / "retain_mmlu.json").write_text('[{"task": "t", "question": "q", "choices": ["x"]}]')
    with pytest.raises(UserError, match=r"retain_mmlu\.json: row 0 is not one of MMLU's questions"):
        rwku.load(target="A", path=tmp_path)
    (tmp_path / "1_A" / "forget_level1.json").write_text('["x"]')
    with pytest.raises(UserError, match=r"forget_level1\.json: row 0 is not an object"):
        rwku.load(target="A", path=tmp_path)
