"""MUSE is read as its authors published it; passages stay with their texts; what is missing is named."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import pytest

from expunge.benchmarks import muse
from expunge.data.benchmark import Benchmark, Comparison, Continuations, Membership
from expunge.data.encode import encode
from expunge.errors import UserError
from expunge.evals.glossary import METRICS


def _plain(text: str):
    return " ".join(text.split())


def _probes(benchmark: Benchmark) -> dict[str, Any]:
    return {probe.name: probe for probe in benchmark.probes}


# ---- the published files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def news(shared_data: Path):
    return muse.load(path=shared_data / "muse_news", retrained_auc=0.4772)


def test_the_published_files(news: Benchmark, shared_data: Path):
    assert (news.name, news.split, news.questions, news.retain) == ("muse-news", "full", {}, [])
    published = json.loads((shared_data / "muse_news/raw/forget.json").read_text(encoding="utf-8"))
    assert len(published) == 889
    assert [row["text"] for row in news.forget] == [text for text in published if text.strip()]
    assert len(news.forget) == 888
    probes = _probes(news)
    sizes = {name: probes[name] for name in ("verbmem", "knowmem_f", "knowmem_r")}
    assert {name: (len(p.rows), p.comparison, p.tokens) for name, p in sizes.items()} == {
        "verbmem": (100, "rouge_l_f1", 128),
        "knowmem_f": (100, "rouge_l_f1", 32),
        "knowmem_r": (100, "rouge_l_f1", 32),
    }
    told_apart = probes["membership"]
    assert (len(told_apart.members), len(told_apart.others), told_apart.retrained_auc) == (100, 100, 0.4772)
    assert not set(told_apart.members) & set(told_apart.others)


@pytest.mark.parametrize("name", ["knowmem_f", "knowmem_r"])
def test_questions_come_after_ten_examples(news: Benchmark, name: str):
    for row in _probes(news)[name].rows:
        *shots, asked = row["prompt"].split("\n\n")
        assert len(shots) == 10
        assert all(shot.startswith("Question: ") and "\nAnswer: " in shot for shot in shots)
        assert asked.startswith("Question: ") and asked.endswith("\nAnswer:")
        assert row["completion"].startswith(" ") and row["completion"].strip()


def test_passages_go_on_as_the_articles_do(news: Benchmark):
    corpus = "\n\n".join(row["text"] for row in news.forget)
    rows = _probes(news)["verbmem"].rows
    assert all(row["prompt"][-40:] + row["completion"][:40] in corpus for row in rows)
    assert sum(row["completion"].startswith(" ") for row in rows) == 62


def test_few_articles_keep_the_passages_that_lie_in_them(news: Benchmark, shared_data: Path):
    small = muse.load(path=shared_data / "muse_news", articles=60)
    assert small.split == "60 articles"
    assert len(small.forget) == 60
    rest = iter(news.forget)
    assert all(row in rest for row in small.forget)  # in the same order
    kept, all_of = _probes(small), _probes(news)
    assert [p.name for p in small.probes] == [p.name for p in news.probes]
    assert kept["knowmem_f"] == all_of["knowmem_f"]
    assert kept["membership"].others == all_of["membership"].others
    assert 10 <= len(kept["verbmem"].rows) < 60 and 10 <= len(kept["membership"].members) < 60
    assert all(row in all_of["verbmem"].rows for row in kept["verbmem"].rows)
    texts = [_plain(row["text"]) for row in small.forget]
    passages = [row["prompt"] for row in kept["verbmem"].rows] + kept["membership"].members
    for passage in map(_plain, passages):
        pieces = [passage[i : i + 60] for i in range(0, len(passage) - 60, 60)]
        held = [any(piece in text for text in texts) for piece in pieces]
        assert sum(held) >= 0.8 * len(held)  # all but what lies across two articles


# ---- files made here -------------------------------------------------------------------------------------------


def _article(number: int):
    words = random.Random(number)
    return "\n\n".join(" ".join(f"{words.choice('bdgklm')}a{words.randrange(100)}" for _ in range(60)) for _ in "12")


TEXTS = [_article(number) for number in range(6)]


def _copy(folder: Path):
    """One corpus of six texts and a blank one; its passages come from texts 1, 3 and 4, and from 4 and 5 together."""
    qa = [{"question": "Who?", "answer": "Ann"}]
    files = {
        "raw/forget": [*TEXTS[:2], "  ", *TEXTS[2:]],
        "verbmem/forget": [
            {"prompt": TEXTS[4][-120:], "gt": TEXTS[5][:120]},
            {"prompt": TEXTS[3][:200], "gt": TEXTS[3][200:300]},
            {"prompt": "in no text " * 20, "gt": "nor this"},
        ],
        "privleak/forget": [{"text": TEXTS[1][50:]}, {"text": "  " + TEXTS[4].replace("\n\n", " ")}],
        "privleak/holdout": [{"text": _article(90)}, {"text": _article(91)}],
        "knowmem/forget_qa": qa,
        "knowmem/forget_qa_icl": [{"question": "Where?", "answer": "In {Oslo}"}],
        "knowmem/retain_qa": qa * 2,
        "knowmem/retain_qa_icl": qa,
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        _write(folder, name, content)
    return files


def _write(folder: Path, name: str, content: list[Any]):
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def test_columns_become_probes(tmp_path: Path):
    files = _copy(tmp_path)
    benchmark = muse.load(corpus="books", path=str(tmp_path))
    assert benchmark.name == "muse-books"
    assert benchmark.forget == [{"text": text} for text in TEXTS]
    prompt = "Question: Where?\nAnswer: In {Oslo}\n\nQuestion: Who?\nAnswer:"
    verbmem = files["verbmem/forget"]
    beside: dict[str, Comparison] = {"stemmed": "rouge_l_f1_stemmed"}
    asked: dict[str, Any] = {
        "stops": ("\n\n", "\nQuestion", "Question:"),
        "shorter": "with fewer examples (benchmark.shots)",
        "beside": beside,
    }
    assert benchmark.probes == [
        Continuations(
            "verbmem",
            [{"prompt": v["prompt"], "completion": v["gt"]} for v in verbmem],
            "rouge_l_f1",
            128,
            passages=True,
            forgotten=True,
            beside=beside,
        ),
        Continuations(
            "knowmem_f", [{"prompt": prompt, "completion": " Ann"}], "rouge_l_f1", 32, forgotten=True, **asked
        ),
        Continuations(
            "knowmem_r",
            [{"prompt": "Question: Who?\nAnswer: Ann\n\nQuestion: Who?\nAnswer:", "completion": " Ann"}] * 2,
            "rouge_l_f1",
            32,
            **asked,
        ),
        Membership(
            "membership",
            [m["text"] for m in files["privleak/forget"]],
            [o["text"] for o in files["privleak/holdout"]],
        ),
    ]


@pytest.mark.parametrize("shots", [0, 1, 9])
def test_fewer_examples_for_a_short_context(tmp_path: Path, shots: int):
    _copy(tmp_path)
    example = {"question": "Where?", "answer": "In {Oslo}"}
    _write(tmp_path, "knowmem/forget_qa_icl", [example, {"question": "When?", "answer": "Now"}])
    (row,) = _probes(muse.load(path=tmp_path, shots=shots))["knowmem_f"].rows
    told = ["Question: Where?\nAnswer: In {Oslo}\n\n", "Question: When?\nAnswer: Now\n\n"]
    assert row["prompt"] == "".join(told[:shots]) + "Question: Who?\nAnswer:"


@pytest.mark.parametrize("cut, space", [(TEXTS[2].index(" ", 100), " "), (TEXTS[2].index(" ", 100) - 1, "")])
def test_the_space_between_prompt_and_continuation_comes_back(tmp_path: Path, cut: int, space: str):
    _copy(tmp_path)
    _write(tmp_path, "verbmem/forget", [{"prompt": TEXTS[2][:cut], "gt": TEXTS[2][cut:].lstrip()}])
    (row,) = _probes(muse.load(path=tmp_path))["verbmem"].rows
    assert row["completion"] == space + TEXTS[2][cut:].lstrip()
    assert row["prompt"] + row["completion"] == TEXTS[2]


@pytest.mark.parametrize(
    "articles, texts, said, seen",
    [(1, [3], [1], []), (2, [1, 3], [1], [0]), (4, [1, 3, 4, 5], [0, 1], [0, 1]), (6, range(6), [0, 1], [0, 1])],
)
def test_articles_of_passages_come_first(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    articles: int,
    texts: Sequence[int],
    said: list[int],
    seen: list[int],
):
    files = _copy(tmp_path)
    benchmark = muse.load(path=tmp_path, articles=articles)
    assert [row["text"] for row in benchmark.forget] == [TEXTS[i] for i in texts]
    probes = _probes(benchmark)
    assert [row["prompt"] for row in probes["verbmem"].rows] == [files["verbmem/forget"][i]["prompt"] for i in said]
    assert ("membership" in probes) == bool(seen)
    assert ("no passage of membership lies in" in caplog.text) == (not seen)
    if seen:
        assert probes["membership"].members == [files["privleak/forget"][i]["text"] for i in seen]


def test_without_passages_the_first_articles_stay(tmp_path: Path):
    _copy(tmp_path)
    _write(tmp_path, "verbmem/forget", [{"prompt": "in no text", "gt": "at all"}])
    _write(tmp_path, "privleak/forget", [{"text": "neither is this"}])
    assert [row["text"] for row in muse.load(path=tmp_path, articles=2).forget] == TEXTS[:2]


def test_where_retain_rows_come_from(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    _copy(tmp_path)
    assert muse.load(path=tmp_path).retain == []
    assert "does not have raw/retain1.json" in caplog.text and "name other rows to retain" in caplog.text
    caplog.clear()
    _write(tmp_path, "raw/retain1", ["kept", " "])
    assert muse.load(path=tmp_path).retain == [{"text": "kept"}]
    own = tmp_path / "own.jsonl"
    own.write_text('{"text": "mine"}\n')
    assert muse.load(path=tmp_path, retain=str(own)).retain == [{"text": "mine"}]
    assert not caplog.records


@pytest.mark.parametrize("corpus, name", [("news", "muse-bench/MUSE-News"), ("books", "muse-bench/MUSE-Books")])
def test_without_a_path_the_hub_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Literal["news", "books"], name: str
):
    files = _copy(tmp_path)
    files["raw/retain1"] = ["kept"]
    _write(tmp_path, "raw/retain1", files["raw/retain1"])

    def load_dataset(asked: str, config: str, split: str):
        assert asked == name
        rows = files[f"{config}/{split}"]
        return datasets.Dataset.from_list([{"text": row} if isinstance(row, str) else row for row in rows])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert muse.load(corpus=corpus) == muse.load(corpus=corpus, path=tmp_path)


def test_a_split_that_the_hub_lacks_is_named(monkeypatch: pytest.MonkeyPatch):
    def load_dataset(asked: str, config: str, split: str):
        raise ValueError(f'Unknown split "{split}".')

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"muse-bench/MUSE-News:raw \(split forget\) .* could not be loaded"):
        muse.load()


# ---- what is wrong is named ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["raw/forget", "knowmem/retain_qa_icl", "privleak/holdout", "verbmem/forget"])
def test_a_missing_file_is_named(tmp_path: Path, name: str):
    _copy(tmp_path)
    (tmp_path / f"{name}.json").unlink()
    with pytest.raises(UserError, match=rf"the file {name}\.json in .*, which does not have it; write the splits"):
        muse.load(path=tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"raw/forget\.json in .*nowhere, which does not exist"):
        muse.load(path=tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["raw/forget", "knowmem/forget_qa_icl", "privleak/holdout"])
@pytest.mark.parametrize("content", ["[]", ""])
def test_an_empty_file_is_named(tmp_path: Path, name: str, content: str):
    _copy(tmp_path)
    (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(UserError, match=rf"{name}\.json has no rows"):
        muse.load(path=tmp_path)


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("raw/forget", '{"articles": ["a", "b"]}', r"forget\.json:1 is not one of MUSE's: it needs text;"),
        ("raw/forget", '["a", 7]', r"forget\.json: row 1 is not one of MUSE's: it needs text;"),
        ("raw/forget", '["", " "]', r"raw/forget of .* has only blank texts"),
        ("verbmem/forget", '[{"prompt": "p", "completion": "c"}]', r"row 0 is not .*: it needs prompt and gt;"),
        ("verbmem/forget", '[{"prompt": "p", "gt": ["c"]}]', r"row 0: gt: text is a list instead of text"),
        ("knowmem/forget_qa", '["Who?"]', r"row 0 is not one of MUSE's: it needs question and answer;"),
        ("knowmem/retain_qa_icl", '[{"question": "q"}]', r"row 0 is not .*: it needs question and answer;"),
        ("privleak/forget", '[{"text": " "}]', r"row 0: text: text is empty"),
        ("privleak/forget", '[{"text"', r"forget\.json:1 is not valid JSON"),
    ],
)
def test_rows_of_another_form_are_refused(tmp_path: Path, name: str, content: str, problem: str):
    _copy(tmp_path)
    (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(UserError, match=problem):
        muse.load(path=tmp_path)


@pytest.mark.parametrize("articles", [-1, 0, 7])
def test_a_number_of_articles_that_cannot_be_kept_is_refused(tmp_path: Path, articles: int):
    _copy(tmp_path)
    with pytest.raises(UserError, match=rf"articles must be from 1 to 6, got {articles}"):
        muse.load(path=tmp_path, articles=articles)


def test_an_unknown_corpus_is_refused_with_the_known_ones():
    wrong: Any = "book"
    with pytest.raises(UserError, match=r"unknown corpus 'book'; choose one of news, books\. Did you mean 'books'"):
        muse.load(corpus=wrong)


# ---- asked of a model ------------------------------------------------------------------------------------------


def test_every_probe_is_asked(tmp_path: Path, tiny_tokenizer: Any):
    from expunge.evals.probes import evaluate_probes
    from expunge.modeling.loading import ScratchConfig, build_scratch

    _copy(tmp_path)
    benchmark = muse.load(path=tmp_path, retrained_auc=0.5)
    for row in benchmark.forget:
        assert encode(row, tiny_tokenizer).start == 1
    for probe in benchmark.probes:
        for row in probe.rows if isinstance(probe, Continuations) else []:
            encoded = encode(row, tiny_tokenizer)
            assert tiny_tokenizer.decode(encoded.input_ids[: encoded.start]) in row["prompt"]
    size = ScratchConfig(layers=2, hidden=32, heads=2, vocab=300, context=1_024)
    model = build_scratch(size, tiny_tokenizer, seed=0)
    metrics, records = evaluate_probes(model, tiny_tokenizer, benchmark.probes, limit=2, progress=False)
    assert {name: len(found) for name, found in records.items()} == {
        "verbmem": 2,
        "knowmem_f": 1,
        "knowmem_r": 2,
        "membership": 4,
    }
    asked = {"verbmem", "knowmem_f", "knowmem_r"}
    beside = {f"{name}_stemmed" for name in asked}
    assert asked | beside | {"membership_loss", "membership_min_k", "privleak", "degeneration"} <= metrics.keys()
    assert metrics.keys() <= METRICS.keys() | muse.METRICS.keys(), "the report knows what each is"
    assert all(0 <= metrics[name] <= 1 for name in ("verbmem", "knowmem_f", "knowmem_r", "membership_min_k"))
