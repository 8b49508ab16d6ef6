"""TOFU (arXiv 2401.06121): 200 fictitious authors of 20 questions each, of whom the last 1, 5 or 10 % are forgotten."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from expunge.benchmarks.base import BenchmarkConfig
from expunge.data.benchmark import Benchmark, Question
from expunge.data.encode import question_row
from expunge.data.files import SourceRecord
from expunge.data.formats import normalise, read_rows, text_of
from expunge.data.source import Source
from expunge.errors import UserError, did_you_mean

HUB_ID = "locuslab/TOFU"
REMEDY = f"download the files of the hub data set {HUB_ID} there, or leave the path out to load them from the hub"
RETAIN_OF = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
"""For every forget split, the rows that stay; the two together are `full`."""
OF_AUTHOR = 20
"""Questions about each author."""
HELD_OUT = "holdout10.json"
"""Twenty authors who are in no other file, where the folder has them; the hub lists no such configuration."""


class TofuConfig(BenchmarkConfig):
    """TOFU, from the hub, or from a folder that holds its files."""

    name: Literal["tofu"] = "tofu"
    split: str = Field(default="forget10", description="forget01, forget05 or forget10")
    authors: int | None = Field(
        default=None, ge=2, le=20, description="number of authors, the last of the 200; fewer for small machines"
    )
    path: str | None = Field(default=None, description="folder with TOFU's JSON files; the hub without it")

    def load(self) -> Benchmark:
        return load(split=self.split, authors=self.authors, path=self.path)


def load(*, split: str = "forget10", authors: int | None = None, path: str | Path | None = None) -> Benchmark:
    """Load one split of TOFU from a local copy of the hub's files (`<path>/<name>.json`), or from the hub.

    The questions on `retain` are about the first 20 authors, who are in retain in every split. `real_authors` and
    `world_facts` have no paraphrase; their answer and wrong answers are the choices. They are also the `utility` rows.
    With `authors` there are only so many, the last ones; the split's share of them is to be forgotten, again from the
    end, and the questions on `retain` are about the others.

    Raises `UserError` for an unknown split, a share that is no whole author, a file that `path` does not have, and rows
    without TOFU's columns.
    """
    if split not in RETAIN_OF:
        raise UserError(
            f"TOFU: unknown split {split!r}; choose one of {', '.join(RETAIN_OF)}.{did_you_mean(split, RETAIN_OF)}"
        )
    sources = {
        "forget": f"{split}_perturbed",
        "retain": "retain_perturbed",
        "real_authors": "real_authors_perturbed",
        "world_facts": "world_facts_perturbed",
    }
    source = Source.at(path, title="TOFU", hub_id=HUB_ID, remedy=REMEDY)
    questions = {
        name: [_question(record) for record in source.read(f"{file}.json", file)] for name, file in sources.items()
    }
    forget = read_rows(source.locate(f"{split}.json", split))
    retain = read_rows(source.locate(f"{RETAIN_OF[split]}.json", RETAIN_OF[split]))
    if authors is not None:
        share = int(split.removeprefix("forget"))
        gone, left = divmod(authors * share, 100)
        if left:
            raise UserError(
                f"benchmark.authors: {share} % of {authors} authors is no whole number; give a multiple of "
                f"{100 // share}, or another split."
            )
        last = [_question(record) for record in source.read("forget10_perturbed.json", "forget10_perturbed")]
        cut = -OF_AUTHOR * gone
        questions |= {"forget": last[cut:], "retain": last[-OF_AUTHOR * authors : cut]}
        forget, retain = forget[cut:], [*retain, *forget[:cut]][-OF_AUTHOR * (authors - gone) :]
    return Benchmark(
        name="tofu",
        split=split,
        forget=forget,
        retain=retain,
        questions=questions,
        unseen=read_rows(source.locate(HELD_OUT)) if source.folder is not None and source.has(HELD_OUT) else [],
        utility=[
            question_row(q.question, q.answer) for name in ("real_authors", "world_facts") for q in questions[name]
        ],
    )


def _question(record: SourceRecord) -> Question:
    where, cells = record
    row = normalise(cells, where)
    perturbed = cells.get("perturbed_answer")
    paraphrased = [cells.get(f"paraphrased_{column}") for column in ("question", "answer")]
    are_texts = isinstance(perturbed, list) and all(isinstance(wrong, str) for wrong in perturbed)
    if (
        "question" not in row
        or not perturbed
        or not are_texts
        or not all(isinstance(text, str | None) for text in paraphrased)
    ):
        raise UserError(
            f"{where} is not one of TOFU's questions: it needs question, answer and perturbed_answer (a list of wrong "
            f"answers); take the file from the hub data set {HUB_ID}."
        )
    for text in [*perturbed, *(text for text in paraphrased if text is not None)]:
        text_of(text, "an answer or a paraphrase", where, may_be_empty=True)
    return Question(
        question=row["question"],
        answer=row["answer"],
        perturbed_answers=tuple(perturbed),
        paraphrased_question=paraphrased[0],
        paraphrased_answer=paraphrased[1],
    )
