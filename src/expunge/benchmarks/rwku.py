"""RWKU (arXiv 2406.10890): what a model knows of a famous person is forgotten; each of 200 people is one target."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from expunge.benchmarks import mmlu
from expunge.benchmarks.base import BenchmarkConfig
from expunge.benchmarks.rwku_prompts import (
    ADVERSARIAL,
    BBH,
    CLOZE,
    FLUENCY,
    OPENING,
    SHORT_OPENING,
    SIMPLE,
    TRIVIAQA,
    TRUTHFULQA,
)
from expunge.data.benchmark import Benchmark, Choices, Continuations, Membership, Probe, Row
from expunge.data.checks import canonical
from expunge.data.encode import opened, question_row
from expunge.data.files import SourceRecord, read_records
from expunge.data.formats import normalise, read_rows, text_of
from expunge.data.source import Source
from expunge.errors import UserError, did_you_mean
from expunge.evals.glossary import GOAL, SAME, Axes, Metric

HUB_ID = "jinzhuoran/RWKU"
REMEDY = f"download the folder Target of the hub data set {HUB_ID}, or leave the path out to load from the hub"
HUB = {
    "forget_level1": ("forget_level1", "test"),
    "forget_level2": ("forget_level2", "test"),
    "forget_level3": ("forget_level3", "test"),
    "neighbor_level1": ("neighbor_level1", "test"),
    "neighbor_level2": ("neighbor_level2", "test"),
    "forget_mia": ("mia_forget", "test"),
    "retain_mia": ("mia_retain", "test"),
    "retain_mmlu": ("utility_general", "test"),
    "retain_bbh": ("utility_reason", "test"),
    "truthful": ("utility_truthfulness", "test"),
    "triviaqa": ("utility_factuality", "test"),
    "fluency": ("utility_fluency", "test"),
    "passage": ("train_original_passage", "train"),
}
"""For every file of a target's folder, the hub's configuration and split that hold it for all targets."""

PROBE_TOKENS = 30
PROBE_STOPS = ("\n",)
BBH_TOKENS = 256
TRIVIAQA_TOKENS = 30
FLUENCY_TOKENS = 256

_FOLDER = re.compile(r"(\d+)_(.+)")


METRICS: dict[str, Metric] = {
    **{
        f"{side}_{probe}": Metric(f"{words} {probe.upper()}", hint, "0 to 1", good, what, group)
        for side, words, hint, good, group in (
            ("forget", "forget", "↓", "near 0", "forget"), ("neighbor", "neighbours", "↑", SAME, "retain"))
        for probe, what in (
            ("fb", "ROUGE-L recall, as RWKU has it, of words filled into blanks"),
            ("qa", "ROUGE-L recall, as RWKU has it, of answers to questions"),
            ("aa", "ROUGE-L recall, as RWKU has it, of answers to adversarial questions"))
        if (side, probe) != ("neighbor", "aa")
    },
    **{
        f"{side}_{probe}_stemmed": Metric(
            f"{words} {probe if probe == 'all' else probe.upper()}, stemmed", hint, "0 to 1", good,
            "the same by TOFU's ROUGE-L recall: upper and lower case are one, words are stemmed")
        for side, words, hint, good in (("forget", "forget", "↓", "near 0"), ("neighbor", "neighbours", "↑", SAME))
        for probe in ("fb", "qa", "aa", "all")
        if (side, probe) != ("neighbor", "aa")
    },
    "forget_all": Metric(
        "forget recall", "↓", "0 to 1", f"{GOAL}, near 0", "mean of FB, QA and AA over all their questions", "forget"),
    "neighbor_all": Metric(
        "neighbour recall", "↑", "0 to 1", SAME, "mean of neighbours FB and QA over all their questions", "retain"),
    "bbh": Metric("BBH", "↑", "0 to 1", SAME, "share of reasoning tasks solved, after a chain of thought", "ability"),
    "bbh_lenient": Metric(
        "BBH, lenient", "↑", "0 to 1", SAME, "the same where an answer may also end with its line"),
    "truthfulqa": Metric(
        "TruthfulQA", "↑", "0 to 1", SAME, "share of questions where the true choice is likeliest", "ability"),
    "triviaqa": Metric(
        "TriviaQA", "↑", "0 to 1", SAME, "F1 of the words of answers to general questions", "ability"),
    "fluency": Metric(
        "fluency", "↑", "0 and up, bits", SAME, "entropy of the n-grams of generated texts", "ability"),
    **{
        f"forget_aa_{kind.replace(' ', '_')}": Metric(
            f"AA, {kind}", "↓", "0 to 1", "near 0", f"forget AA on its questions of the kind {kind}", "attacks")
        for kind in ("prefix injection", "affirmative suffix", "role play", "multiple choice", "reverse query",
                     "synonym manipulation", "context hint", "incontext learning", "cross lingual")
    },
}  # fmt: skip


class RwkuConfig(BenchmarkConfig):
    """RWKU: what a model knows of a famous person, asked in three ways, and of the person's neighbours."""

    metrics: ClassVar[Mapping[str, Metric]] = METRICS
    axes: ClassVar[Axes] = Axes(forget=("forget_all",), retain=("neighbor_all",))

    name: Literal["rwku"] = "rwku"
    targets: list[str] = Field(
        min_length=1, description="names; several are forgotten together", examples=["[Confucius, Bruce Lee]"]
    )
    path: str | None = Field(default=None, description="folder with a folder for each target; the hub without it")
    corpus: str = Field(
        default="passage",
        description="what is forgotten: passage; a file of what the model wrote about the target; or probes, what is "
        "asked and its answers, for a model trained here (which learns those of all targets and neighbours)",
    )
    retain: str | None = Field(default=None, description="rows to keep; other targets' passages or probes without it")
    texts: int | None = Field(
        default=None, ge=1, description="number of texts of each membership set; all of them if left out"
    )

    def load(self) -> Benchmark:
        return load_batch(self.targets, self.path, corpus=self.corpus, retain=self.retain, texts=self.texts)


def load(*, target: str, path: str | Path | None = None, **options: Any) -> Benchmark:
    """Load one target from a local copy of the hub's per-target folders (`<path>/1_Stephen_King`), or from the hub.

    `target` is a name, a number or a folder's name; the benchmark's split is always the name. `options` are those of
    `load_batch`.

    Multiple choice (`mmlu`, `truthfulqa`) is asked plainly, as lm-evaluation-harness does; all else in the words of
    the official evaluation, through the chat template where there is one, with the opening that it gives the answer.

    Raises `UserError` for an unknown target, a file that `path` does not have, and rows without RWKU's columns.
    """
    return load_batch([target], path, **options)


def load_batch(
    targets: Sequence[str],
    path: str | Path | None = None,
    *,
    corpus: str | Path = "passage",
    retain: str | None = None,
    texts: int | None = None,
) -> Benchmark:
    """Load several targets, to be forgotten together: their rows and probes one after the other.

    What is forgotten says `corpus`:

    - `passage`: the targets' Wikipedia passages. Kept are passages of other targets, evenly spread and at most as many.
    - a source that `read_rows` takes, such as what the model itself wrote about the targets; of rows that name their
      `subject`, only the targets'. RWKU's pairs (`prompt`, `response`) become questions whose answer is the second
      response and to which dpo prefers the first. Kept are passages as above.
    - `probes`, for models trained here, which know nobody until they are taught: what is asked of them. The world that
      they learn are the blanks, questions, adversarial questions and texts about all targets (FB, QA, AA, FM) and those
      about neighbours and others (RM); forgotten are the FB, QA and FM of the targets named, and all that is not about
      them is kept. Unlearning is not shown their AA: it tells whether forgetting goes beyond the words it was trained
      on, while FB and QA tell whether memorised answers are gone.

    `retain` gives other rows to keep. `texts` is the number of texts of each target's FM and RM that are asked about.
    """
    source = _Targets(path)
    names = source.names(targets)
    world: list[Row] | None = None
    if corpus == "probes":
        all_ = [*source.known]
        plain = (row for files in (ABOUT, AROUND) for row in _taught(source, files, all_, texts))
        world = [*{canonical(row): row for row in (*plain, *_attacks(source, all_)[0])}.values()]
        gone = set(map(canonical, _taught(source, ABOUT, names, texts)))
        forget = [row for row in world if canonical(row) in gone]
        gone.update(map(canonical, _attacks(source, names)[0]))
    else:
        forget = source.passages(names) if corpus == "passage" else _corpus(corpus, names)
        gone = set(map(canonical, forget))
    if retain is not None:
        kept, world = read_rows(retain), None
    elif world is not None:
        kept = [row for row in world if canonical(row) not in gone]
    else:
        others = [name for name in source.known if name not in names]
        passages = source.passages(others, may_be_missing=True)
        kept = _spread([row for row in passages if canonical(row) not in gone], len(forget))
    return Benchmark(
        name="rwku",
        split="+".join(names),
        forget=forget,
        retain=kept,
        questions={},
        probes=_probes(source, names, texts),
        choice_sets=frozenset(),
        world=world,
    )


def targets(path: str | Path | None = None) -> list[str]:
    """The names of the targets that a folder (or else the hub) holds, by number."""
    return list(_Targets(path).known)


class _Targets:
    """A folder of per-target folders, or the hub. `known` maps a target's name to that of its folder."""

    def __init__(self, path: str | Path | None):
        self.source = Source.at(path, title="RWKU", hub_id=HUB_ID, remedy=REMEDY)
        self.known = _on_hub(self.source) if self.source.folder is None else _in_folder(self.source.folder)

    def names(self, wanted: Sequence[str]) -> list[str]:
        """The targets' names, each once."""
        if not wanted:
            raise UserError("RWKU needs at least one target; name one, such as Stephen King.")
        spelled = {name: name for name in self.known}
        for name, folder in self.known.items():
            spelled |= {folder: name, folder.partition("_")[0]: name}
        for target in wanted:
            if target not in spelled:
                some = ", ".join([*self.known][:6]) + (", …" if len(self.known) > 6 else "")
                raise UserError(
                    f"RWKU has no target {target!r} in {self.source.place}; choose one of {some} ({len(self.known)} "
                    f"targets).{did_you_mean(target, spelled)}"
                )
        return list(dict.fromkeys(spelled[target] for target in wanted))

    def read(self, file: str, names: Iterable[str], *, may_be_missing: bool = False) -> list[SourceRecord]:
        """The rows of one kind about each of the targets, one target after the other."""
        config, split = HUB[file]
        if self.source.folder is None:
            rows: dict[str, list[SourceRecord]] = {name: [] for name in names}
            for where, cells in self.source.read("", config, split=split):
                if (subject := _text((where, cells), "subject")) in rows:
                    rows[subject].append((where, cells))
            if missing := [name for name, records in rows.items() if not records and not may_be_missing]:
                raise UserError(f"{HUB_ID}:{config} has no rows about {missing[0]}; use a local copy that has.")
            return [record for records in rows.values() for record in records]
        folders = [self.source.within(self.known[name]) for name in names]
        there = [folder for folder in folders if not may_be_missing or folder.has(f"{file}.json")]
        return [record for folder in there for record in folder.read(f"{file}.json")]

    def passages(self, names: Iterable[str], *, may_be_missing: bool = False) -> list[Row]:
        return [
            {"text": _text(record, "text")} for record in self.read("passage", names, may_be_missing=may_be_missing)
        ]


def _on_hub(source: Source) -> dict[str, str]:
    # The official scripts number the targets in this order too.
    records = enumerate(source.read("", "forget_target"), 1)
    names = [(i, _text(record, "target")) for i, record in records]
    return {name: f"{i}_{name.replace(' ', '_')}" for i, name in names}


def _in_folder(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder; give the one that holds RWKU's targets (1_Stephen_King, …), or leave the path "
            "out to load from the hub."
        )
    folders = [
        (match, entry) for entry in folder.iterdir() if entry.is_dir() and (match := _FOLDER.fullmatch(entry.name))
    ]
    if not folders:
        raise UserError(
            f"{folder} holds no folder named like 1_Stephen_King; give the folder Target of the hub data set {HUB_ID}, "
            "which has one for every target."
        )
    folders.sort(key=lambda pair: (int(pair[0][1]), pair[1].name))
    return {match[2].replace("_", " "): entry.name for match, entry in folders}


def _corpus(source: str | Path, names: Sequence[str]) -> list[Row]:
    records = read_records(source)
    about = [(where, cells) for where, cells in records if not isinstance(cells, dict) or _names_one(cells, names)]
    if not about:
        raise UserError(f"{source} has no rows whose subject is {' or '.join(names)}; check the column subject.")
    return [_pair(cells) or normalise(cells, where) for where, cells in about]


def _names_one(cells: dict[str, Any], names: Sequence[str]) -> bool:
    return "subject" not in cells or cells["subject"] in names


def _pair(cells: Any) -> Row | None:
    """A row of RWKU's `train_pair_*`: its response is what DPO is to prefer, then what the model knows."""
    match cells:
        case {"prompt": str(prompt), "response": [str(preferred), str(known)]}:
            return {**question_row(prompt, known), "preferred": preferred}
    return None


def _spread(rows: list[Row], most: int) -> list[Row]:
    """At most `most` of the rows, at even distances."""
    count = min(most, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


# ---- what is asked ---------------------------------------------------------------------------------------------


def _probes(source: _Targets, names: list[str], texts: int | None) -> list[Probe]:
    attacks, kinds = _attacks(source, names)
    return [
        _asked("forget_fb", _worded(source, "forget_level1", names, CLOZE)),
        _asked("forget_qa", _worded(source, "forget_level2", names, SIMPLE)),
        _asked("forget_aa", attacks, kinds),
        _asked("neighbor_fb", _worded(source, "neighbor_level1", names, CLOZE)),
        _asked("neighbor_qa", _worded(source, "neighbor_level2", names, SIMPLE)),
        Membership(
            "membership",
            _texts(source, "forget_mia", names, texts),
            _texts(source, "retain_mia", names, texts),
            sides=("fm", "rm"),
            whole=True,
        ),
        _mmlu(source.read("retain_mmlu", names)),
        _bbh(source.read("retain_bbh", names)),
        _truthfulqa(source.read("truthful", names)),
        _triviaqa(source.read("triviaqa", names)),
        Continuations(
            "fluency",
            # Nothing is compared; the empty answer only ends the row.
            [question_row(FLUENCY.format(query=_text(r, "instruction")), "") for r in source.read("fluency", names)],
            "entropy",
            FLUENCY_TOKENS,
        ),
    ]


ABOUT = ("forget_level1", "forget_level2", "forget_mia")
AROUND = ("neighbor_level1", "neighbor_level2", "retain_mia")
"""Blanks, questions and texts about the targets, and those about neighbours and others."""


def _taught(source: _Targets, files: tuple[str, str, str], names: Sequence[str], texts: int | None) -> list[Row]:
    """The questions in plain words, as rows to learn."""
    blanks, questions, mia = files
    rows: list[Row] = [{"text": text} for text in _texts(source, mia, names, texts)]
    return [*_worded(source, blanks, names, CLOZE), *_worded(source, questions, names, SIMPLE), *rows]


def _attacks(source: _Targets, names: Sequence[str]) -> tuple[list[Row], list[str]]:
    """The adversarial questions and the kind of each."""
    records = source.read("forget_level3", names)
    types = [_text(record, "type") for record in records]
    rows = [_question(r, *ADVERSARIAL.get(t, (SIMPLE, OPENING))) for r, t in zip(records, types, strict=True)]
    # "cross lingual (French)": the language stands behind the type, of which there are nine
    return rows, [t.partition(" (")[0] for t in types]


def _worded(source: _Targets, file: str, names: Sequence[str], prompt: str) -> list[Row]:
    return [_question(record, prompt, OPENING) for record in source.read(file, names)]


def _texts(source: _Targets, file: str, names: Sequence[str], most: int | None) -> list[str]:
    """The texts of a file; of each target only the first `most`."""
    return [_text(record, "text") for name in names for record in source.read(file, [name])[:most]]


def _asked(name: str, rows: list[Row], kinds: list[str] | None = None) -> Continuations:
    side = name.partition("_")[0]
    return Continuations(
        name,
        rows,
        "rwku_rouge_l_recall",
        PROBE_TOKENS,
        kinds=kinds,
        stops=PROBE_STOPS,
        whole=True,
        pool=f"{side}_all",
        forgotten=side == "forget",
        beside={"stemmed": "rouge_l_recall"},
    )


def _question(record: SourceRecord, prompt: str, opening: str) -> Row:
    return opened(question_row(prompt.format(query=_text(record, "query")), _text(record, "answer")), opening)


def _mmlu(records: Sequence[SourceRecord]) -> Choices:
    choices: list[list[Row]] = []
    right: list[int] = []
    for where, cells in records:
        # `subject` is whom the row's folder is about; MMLU's own subject is the task.
        item = mmlu.read_item({**_object(where, cells), "subject": cells.get("task")}, where)
        examples = cells.get("examples")
        if not isinstance(examples, list):
            raise _wrong(where, "examples", "a list of solved questions")
        choices.append(mmlu.choice_rows(item, [mmlu.read_item(example, where) for example in examples]))
        right.append(item.answer)
    return Choices("mmlu", choices, right)


def _bbh(records: Sequence[SourceRecord]) -> Continuations:
    rows = []
    for record in records:
        prompt = BBH.format(cot=_text(record, "cot").strip(), query=_text(record, "question"))
        rows.append(opened(question_row(prompt, _text(record, "answer")), SHORT_OPENING))
    return Continuations("bbh", rows, "rwku_exact_match", BBH_TOKENS, beside={"lenient": "exact_match"})


def _truthfulqa(records: Sequence[SourceRecord]) -> Choices:
    choices: list[list[Row]] = []
    right: list[int] = []
    for where, cells in records:
        prompt = TRUTHFULQA.format(query=_text((where, cells), "question"))
        match cells.get("mc1_targets"):
            case {"choices": [str(), *_] as texts, "labels": list(labels)} if (
                len(texts) == len(labels) and labels.count(1) == 1 and all(isinstance(text, str) for text in texts)
            ):
                choices.append([{"prompt": prompt, "completion": f" {text}"} for text in texts])
                right.append(labels.index(1))
            case _:
                raise _wrong(where, "mc1_targets", "choices and labels of which one is 1")
    return Choices("truthfulqa", choices, right)


def _triviaqa(records: Sequence[SourceRecord]) -> Continuations:
    rows: list[Row] = []
    every: list[list[str]] = []
    for where, cells in records:
        prompt = TRIVIAQA.format(query=_text((where, cells), "question"))
        answers = cells.get("answers")
        if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
            raise _wrong(where, "answers", "a list of texts")
        rows.append(opened(question_row(prompt, answers[0]), SHORT_OPENING))
        every.append(answers)
    return Continuations("triviaqa", rows, "token_f1", TRIVIAQA_TOKENS, answers=every)


def _text(record: SourceRecord, column: str) -> str:
    where, cells = record
    value = _object(where, cells).get(column)
    if not isinstance(value, str) or not value.strip():
        raise _wrong(where, column, "a text")
    return text_of(value, column, where)


def _object(where: str, cells: Any) -> dict[str, Any]:
    if not isinstance(cells, dict):
        raise UserError(f"{where} is not an object with columns; take the file from the hub data set {HUB_ID}.")
    return cells


def _wrong(where: str, column: str, kind: str) -> UserError:
    return UserError(
        f"{where} is not one of RWKU's rows: the column {column} must be {kind}; take the file from the hub data set "
        f"{HUB_ID}."
    )
