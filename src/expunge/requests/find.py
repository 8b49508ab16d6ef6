"""Which rows are about a person: by name, by identifier, and as near-copies of what is about her."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import regex
from tqdm.auto import tqdm

from expunge.data.files import SourceRecord
from expunge.errors import UserError
from expunge.requests.copies import Copies
from expunge.requests.names import UNSURE, Finder, Hit, Text, Vocabulary, patterns
from expunge.requests.people import Person
from expunge.requests.sources import text_of

TAKEN = 0.8
"""Score from which on a row is taken without being looked at."""
LISTED = 0.5
"""Score from which on a row is listed."""
ANOTHER = 3
"""Rows with one and the same other spelling, from which on it may be another person's name."""
ABOUT_OTHERS = 0.7
"""Factor of a near-copy that has names or numbers of its own."""
AROUND = 70
"""Characters of an excerpt on both sides."""

_DIGITS = regex.compile(r"[\d\s./()+-]*")
_ADDRESS = (r"(?<![\p{L}\p{N}._%+-])", r"(?![\p{L}\p{N}_-]|\.[\p{L}\p{N}])")
_PLAIN = (r"(?<![\p{L}\p{N}])", r"(?![\p{L}\p{N}])")


@dataclass(frozen=True)
class Found:
    """A row that may be about a person.

    row      its number among the records that were searched
    where    its file and line
    score    how sure it is, in [0, 1]
    reason   why, in words
    excerpt  what stands before, the words that were found, and what stands behind
    taken    whether the score is high enough
    """

    person: str
    row: int
    where: str
    score: float
    reason: str
    excerpt: tuple[str, str, str]
    taken: bool


def find(
    people: Sequence[Person], records: Sequence[SourceRecord], *, least: float = TAKEN, progress: bool = True
) -> list[Found]:
    """The rows of `records` that are or may be about each of `people`: person by person, the surest first.

    A row is found at most once for a person, with its best reason. Raises `UserError` without rapidfuzz, and for a
    `least` outside [LISTED, 1].
    """
    if not LISTED <= least <= 1:
        raise UserError(f"least must be from {LISTED} to 1, got {least:g}.")
    try:
        import rapidfuzz  # noqa: F401
    except ImportError:
        raise UserError("find: rapidfuzz is missing; pip install 'expunge[requests]'.") from None
    vocabulary = Vocabulary()
    for text in _texts(records, "read", progress):
        vocabulary.add(text)
    finders = [_Search(person, people, vocabulary) for person in people]
    for row, text in enumerate(_texts(records, "search", progress)):
        for finder in finders:
            finder.look(row, text)
    found = [{row: (hit, text) for row, hit, text in finder.found()} for finder in finders]
    sure = [[row for row, (hit, _) in of.items() if hit.score >= least] for of in found]
    copies = [
        Copies([*(text_of(records[row][1]) for row in rows), *person.text])
        for person, rows in zip(people, sure, strict=True)
    ]
    listed: list[Found] = []
    rest = tqdm(records, "compare", delay=5, leave=False, disable=not progress or None)
    for row, (where, record) in enumerate(rest):
        for person, of, rows, known in zip(people, found, sure, copies, strict=True):
            if row in of and of[row][0].score >= least:
                hit, excerpt = of[row]
                listed.append(Found(person.name, row, where, hit.score, hit.reason, excerpt, True))
                continue
            reading = [_named(person.name, row, where, *of[row])] if row in of else []
            text = text_of(record)
            if (copy := known.of(text, UNSURE)) is not None:
                of_row = copy.known < len(rows)
                source = f"of {records[rows[copy.known]][0]}" if of_row else "of the text about the person"
                score = copy.share * (ABOUT_OTHERS if copy.others else 1.0)
                differs = ", with other names or numbers" if copy.others else ""
                begin = " ".join(text.split())[: 2 * AROUND]
                reason = f"near-copy {source}{differs}"
                reading.append(Found(person.name, row, where, score, reason, (begin, "", ""), score >= least))
            kept = max(reading, key=lambda each: each.score, default=None)
            if kept is not None and kept.score >= LISTED:
                listed.append(kept)
    order = {person.name: i for i, person in enumerate(people)}
    return sorted(listed, key=lambda each: (order[each.person], -each.score, each.row))


def _texts(records: Sequence[SourceRecord], what: str, progress: bool) -> Iterator[Text]:
    for _, record in tqdm(records, what, delay=5, leave=False, disable=not progress or None):
        yield Text.of(text_of(record))


def _named(name: str, row: int, where: str, hit: "_Best", excerpt: tuple[str, str, str]) -> Found:
    return Found(name, row, where, hit.score, hit.reason, excerpt, False)


@dataclass(frozen=True)
class _Best:
    score: float
    reason: str


class _Search:
    """Looks for one person in one text after the other."""

    def __init__(self, person: Person, people: Sequence[Person], vocabulary: Vocabulary) -> None:
        named = [*patterns(person.name, "name"), *(p for alias in person.aliases for p in patterns(alias, "alias"))]
        # Of two patterns with the same words the surer one counts.
        surest = {p.words: p for p in sorted(named, key=lambda p: p.score)}
        own = set(surest)
        others = (name for other in people if other is not person for name in (other.name, *other.aliases))
        self._others = {p.words for name in others for p in patterns(name, "name") if p.plain} - own
        self._vocabulary = vocabulary
        self._finder = Finder(list(surest.values()), vocabulary)
        self._identifiers = [(text, _expression(text)) for text in person.identifiers]
        self._rows: dict[int, tuple[Hit | str, tuple[str, str, str]]] = {}
        self._wrong: Counter[str] = Counter()
        self._forms: Counter[tuple[str, ...]] = Counter()
        self._exact = 0

    def look(self, row: int, text: Text) -> None:
        for identifier, expression in self._identifiers:
            if (match := expression.search(text.plain)) is not None:
                self._rows[row] = (identifier, _excerpt(text.plain, match.start(), match.end()))
                return
        hits = [hit for hit in self._finder.hits(text) if not self._is_nearer_to_others(hit)]
        if not hits:
            return
        for hit in hits:
            self._wrong.update(hit.wrong)
        hit = max(hits, key=lambda each: each.score)
        if hit.wrong:
            self._forms[hit.form] += 1
        elif hit.score == 1:
            self._exact += 1
        self._rows[row] = (hit, _excerpt(text.plain, text.places[hit.first][0], text.places[hit.last][1]))

    def found(self) -> Iterator[tuple[int, _Best, tuple[str, str, str]]]:
        for row, (hit, excerpt) in self._rows.items():
            if isinstance(hit, str):
                yield row, _Best(1.0, f"identifier {hit}"), excerpt
                continue
            if hit.wrong and self._is_another(hit):
                hit = replace(hit, score=min(hit.score, UNSURE), what="misspelt, or another person's name")
            yield row, _Best(hit.score, f"{hit.pattern.kind} {hit.pattern.name}{hit.what and f', {hit.what}'}"), excerpt

    def _is_nearer_to_others(self, hit: Hit) -> bool:
        """Whether the spelling is that of another person who is looked for, or nearer to it."""
        from rapidfuzz.distance import OSA

        if not hit.wrong:
            return hit.form in self._others
        form, own = " ".join(hit.form), " ".join(hit.pattern.words)
        return any(OSA.distance(form, " ".join(other)) < OSA.distance(form, own) for other in self._others)

    def _is_another(self, hit: Hit) -> bool:
        """Whether a spelling is more likely of another name: it is in many rows, or its words stand elsewhere too."""
        elsewhere = max(self._vocabulary.seen[word] - self._wrong[word] for word in hit.wrong)
        rows = self._forms[hit.form]
        return elsewhere >= ANOTHER or (rows >= ANOTHER and 2 * rows >= self._exact > 0)


def _expression(identifier: str) -> Any:
    """Finds an identifier in any case; a number with other separators between its digits, too."""
    text = Text.of(identifier).plain.strip()
    before, behind = _ADDRESS if "@" in text else _PLAIN
    if _DIGITS.fullmatch(text):
        inside = r"[\s./()-]{0,2}".join(regex.findall(r"\d", text))
    else:
        inside = r"\s+".join(map(regex.escape, text.split()))
    return regex.compile(f"{before}{inside}{behind}", regex.IGNORECASE | regex.FULLCASE)


def _excerpt(text: str, begin: int, end: int) -> tuple[str, str, str]:
    before, behind = text[max(0, begin - AROUND) : begin], text[end : end + AROUND]
    cut = ("…" if begin > AROUND else "", "…" if end + AROUND < len(text) else "")
    return f"{cut[0]}{_line(before)}", _line(text[begin:end]), f"{_line(behind)}{cut[1]}"


def _line(text: str) -> str:
    return regex.sub(r"\s+", " ", text)


def rows_taken(found: Iterable[Found]) -> list[int]:
    """The numbers of the rows that are taken for at least one person, in order."""
    return sorted({each.row for each in found if each.taken})
