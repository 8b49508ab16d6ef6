"""MUSE (arXiv 2407.06460): news articles or books to forget, and what a model then still says and knows of them."""

import logging
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from expunge.benchmarks.base import BenchmarkConfig
from expunge.data.benchmark import Benchmark, Continuations, Membership, Probe, Row
from expunge.data.files import SourceRecord
from expunge.data.formats import normalise, read_rows
from expunge.data.source import Source
from expunge.errors import UserError, did_you_mean
from expunge.evals.glossary import GOAL, SAME, Axes, Metric

log = logging.getLogger(__name__)

HUB_IDS = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
VERBMEM_TOKENS = 128
NEXT_QUESTION = ("\n\n", "\nQuestion", "Question:")
"""Where a base model has answered and goes on to ask."""
KNOWMEM_TOKENS = 32

_STRETCH = 100
_SPACING = 400
"""Distance in characters between two pieces of a passage that are looked for in the articles; each has `_STRETCH`."""


METRICS: dict[str, Metric] = {
    "verbmem": Metric(
        "verbatim memory", "↓", "0 to 1", GOAL, "ROUGE-L F1 of the continuation of a forget text", "forget"),
    "knowmem_f": Metric(
        "forget knowledge", "↓", "0 to 1", GOAL, "ROUGE-L F1 of answers about the forget texts", "forget"),
    "knowmem_r": Metric(
        "retain knowledge", "↑", "0 to 1", SAME, "ROUGE-L F1 of answers about the texts to keep", "retain"),
    **{
        f"{name}_stemmed": Metric(f"{label}, stemmed", hint, "0 to 1", good, "the same with stemmed words")
        for name, label, hint, good in (
            ("verbmem", "verbatim memory", "↓", GOAL), ("knowmem_f", "forget knowledge", "↓", GOAL),
            ("knowmem_r", "retain knowledge", "↑", SAME))
    },
}  # fmt: skip


class MuseConfig(BenchmarkConfig):
    """MUSE's news or books: passages to continue, few-shot questions, membership."""

    metrics: ClassVar[Mapping[str, Metric]] = METRICS
    axes: ClassVar[Axes] = Axes(forget=("knowmem_f", "verbmem"), retain=("knowmem_r",))

    name: Literal["muse-news", "muse-books"] = "muse-news"
    path: str | None = Field(default=None, description="folder with MUSE's files; the hub without it")
    retain: str | None = Field(default=None, description="file, folder or hub id of texts to keep; MUSE's own without")
    articles: int | None = Field(
        default=None, ge=1, description="number of texts to forget and to ask about; all of them if left out"
    )
    shots: int | None = Field(default=None, ge=0, description="examples before a question; all of MUSE's without")
    retrained_auc: float | None = Field(
        default=None, gt=0, le=1, description="of a retrained model that is not at hand (.4772 for Llama-2-7B on news)"
    )

    def load(self) -> Benchmark:
        corpus: Any = self.name.removeprefix("muse-")
        return load(corpus=corpus, **self.model_dump(exclude={"name"}))


def load(
    *,
    corpus: Literal["news", "books"] = "news",
    path: str | Path | None = None,
    retain: str | None = None,
    articles: int | None = None,
    shots: int | None = None,
    retrained_auc: float | None = None,
) -> Benchmark:
    """Load MUSE from a local copy of the hub's files (`<path>/<config>/<split>.json`), or from the hub.

    The forget rows are whole texts, blank ones left out. The retain rows are `retain` (a file, a folder or a hub id,
    see `read_rows`), else the benchmark's own retain1; a local copy may lack it. The probes are `verbmem` (passages to
    go on with), `knowmem_f` and `knowmem_r` (few-shot questions) and `membership` (passages seen and not seen), of
    which the retrained model's AUC is `retrained_auc`. A question comes after MUSE's ten examples, or after the first
    `shots` of them where the model's context is short.

    `articles` keeps that many forget texts: those that the passages of `verbmem` and `membership` were cut from, which
    often run over several neighbours, then the others in order. Of those passages stay the ones whose texts do; the
    questions all stay, for nothing says which text they are about.

    Raises `UserError` for an unknown corpus, a file that `path` does not have or that has no rows, rows without MUSE's
    columns, and a number of articles that can't be kept.
    """
    if corpus not in HUB_IDS:
        raise UserError(
            f"MUSE: unknown corpus {corpus!r}; choose one of {', '.join(HUB_IDS)}.{did_you_mean(corpus, HUB_IDS)}"
        )
    files = _Files(corpus, path)
    texts = files.texts("raw", "forget", may_be_blank=True)
    if articles is not None and not 1 <= articles <= len(texts):
        raise UserError(f"MUSE-{corpus}: articles must be from 1 to {len(texts)}, got {articles}.")
    passages = files.cells("verbmem", "forget", "prompt", "gt")
    members = files.texts("privleak", "forget")
    retained = _retain(files, retain)
    continued = _joined(passages, texts)
    if articles is not None:
        said, seen = _sources([[p, c] for p, c in passages], texts), _sources([[m] for m in members], texts)
        kept = _keep(said, seen, articles, len(texts))
        texts = [texts[i] for i in sorted(kept)]
        continued = [row for row, needed in zip(continued, said, strict=True) if needed and needed <= kept]
        members = [member for member, needed in zip(members, seen, strict=True) if needed and needed <= kept]
    common: dict[str, Any] = {"beside": {"stemmed": "rouge_l_f1_stemmed"}}
    asked = {**common, "stops": NEXT_QUESTION, "shorter": "with fewer examples (benchmark.shots)"}
    gone, kept_qa = files.few_shot("forget", shots), files.few_shot("retain", shots)
    probes: list[Probe] = [
        Continuations("verbmem", continued, "rouge_l_f1", VERBMEM_TOKENS, passages=True, forgotten=True, **common),
        Continuations("knowmem_f", gone, "rouge_l_f1", KNOWMEM_TOKENS, forgotten=True, **asked),
        Continuations("knowmem_r", kept_qa, "rouge_l_f1", KNOWMEM_TOKENS, **asked),
        Membership("membership", members, files.texts("privleak", "holdout"), retrained_auc),
    ]
    empty = {probe.name for probe in probes if not (probe.rows if isinstance(probe, Continuations) else members)}
    if empty:
        log.warning("no passage of %s lies in %s articles; it is not measured", " and ".join(sorted(empty)), articles)
    return Benchmark(
        name=f"muse-{corpus}",
        split="full" if articles is None else f"{articles} articles",
        forget=[{"text": text} for text in texts],
        retain=retained,
        questions={},
        probes=[probe for probe in probes if probe.name not in empty],
        choice_sets=frozenset(),
    )


def _retain(files: "_Files", retain: str | None) -> list[Row]:
    if retain is not None:
        return read_rows(retain)
    if files.has("raw", "retain1"):
        return [{"text": text} for text in files.texts("raw", "retain1", may_be_blank=True)]
    log.warning(
        "there are no retain rows: %s does not have raw/retain1.json; take it from the hub data set %s, "
        "or name other rows to retain",
        files.source.folder,
        files.source.hub_id,
    )
    return []


# ---- files -----------------------------------------------------------------------------------------------------


class _Files:
    """The configurations and splits of one corpus, here or on the hub."""

    def __init__(self, corpus: str, path: str | Path | None) -> None:
        hub_id = HUB_IDS[corpus]
        remedy = f"write the splits of the hub data set {hub_id} there, or leave the path out to load them from the hub"
        self.source = Source.at(path, title="MUSE", hub_id=hub_id, remedy=remedy)

    def has(self, config: str, split: str) -> bool:
        return self.source.has(f"{config}/{split}.json")

    def texts(self, config: str, split: str, *, may_be_blank: bool = False) -> list[str]:
        records = self._read(config, split)
        # The hub has a column `text` where the files of the authors' repository may be lists of strings.
        records = [(where, {"text": record} if isinstance(record, str) else record) for where, record in records]
        if may_be_blank:  # as one of the news articles is
            records = [record for record in records if not _is_blank(record)]
            if not records:
                raise UserError(f"{config}/{split} of {self.source.place} has only blank texts; write others.")
        return [text for (text,) in self._checked(records, "text")]

    def cells(self, config: str, split: str, *columns: str) -> list[list[str]]:
        return self._checked(self._read(config, split), *columns)

    def few_shot(self, side: str, shots: int | None) -> list[Row]:
        """MUSE's prompt: the examples with their answers, then the question."""
        examples = self.cells("knowmem", f"{side}_qa_icl", "question", "answer")[:shots]
        before = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in examples)
        return [
            {"prompt": f"{before}Question: {question}\nAnswer:", "completion": f" {answer}"}
            for question, answer in self.cells("knowmem", f"{side}_qa", "question", "answer")
        ]

    def _read(self, config: str, split: str) -> list[SourceRecord]:
        return self.source.read(f"{config}/{split}.json", config, split=split)

    def _checked(self, records: Sequence[SourceRecord], *columns: str) -> list[list[str]]:
        for where, record in records:
            if not isinstance(record, dict) or any(column not in record for column in columns):
                raise UserError(
                    f"{where} is not one of MUSE's: it needs {' and '.join(columns)}; take the file from the hub data "
                    f"set {self.source.hub_id}."
                )
        return [
            [normalise({"text": record[column]}, f"{where}: {column}")["text"] for column in columns]
            for where, record in records
        ]


def _is_blank(record: SourceRecord) -> bool:
    _, cells = record
    return isinstance(cells, dict) and isinstance(text := cells.get("text"), str) and not text.strip()


# ---- passages and the texts they were cut from -----------------------------------------------------------------


def _joined(passages: Sequence[Sequence[str]], texts: Sequence[str]) -> list[Row]:
    """Prompts and what follows them, with the space that was lost where the two were cut apart.

    They were cut between tokens, some within a word; only the text says which.
    """
    corpus = "\n\n".join(texts)
    rows = []
    for prompt, following in passages:
        head, tail = prompt[-_STRETCH:], following[:_STRETCH]
        space = " " if f"{head} {tail}" in corpus and head + tail not in corpus else ""
        rows.append({"prompt": prompt, "completion": space + following})
    return rows


def _sources(passages: Sequence[Sequence[str]], texts: Sequence[str]) -> list[set[int]]:
    """For each passage (in parts) the texts that it was cut from; none where they can't be found."""
    plain = [_plain(text) for text in texts]
    return [_cover([s for part in parts for s in _stretches(_plain(part))], plain) for parts in passages]


def _plain(text: str) -> str:
    return " ".join(text.split())


def _stretches(text: str) -> list[str]:
    count = max(1, len(text) // _SPACING)
    starts = [max(0, len(text) * (2 * i + 1) // (2 * count) - _STRETCH // 2) for i in range(count)]
    return [text[start : start + _STRETCH] for start in starts]


def _cover(stretches: Sequence[str], texts: Sequence[str]) -> set[int]:
    """The fewest texts (greedily) that hold every stretch that any text holds.

    Of equals the nearest to those found: a passage runs on from text to text, and many texts share their last lines.
    """
    holders = [{i for i, text in enumerate(texts) if stretch in text} for stretch in stretches]
    chosen: set[int] = set()
    while left := [h for h in holders if h and not h & chosen]:

        def rank(i: int, left: list[set[int]] = left) -> tuple[int, int, int]:
            return -sum(i in h for h in left), min((abs(i - j) for j in chosen), default=0), i

        chosen.add(min(set().union(*left), key=rank))
    return chosen


def _keep(said: Sequence[set[int]], seen: Sequence[set[int]], articles: int, total: int) -> set[int]:
    """Which texts stay. Both kinds of passage take turns, those of few texts first, so that few articles hold many."""
    kept: set[int] = set()
    turns = zip_longest(*(sorted(filter(None, sources), key=len) for sources in (said, seen)), fillvalue=set[int]())
    for needed in chain.from_iterable(turns):
        if len(kept | needed) <= articles:
            kept |= needed
    others = (i for i in range(total) if i not in kept)
    return kept | {i for i, _ in zip(others, range(articles - len(kept)), strict=False)}
