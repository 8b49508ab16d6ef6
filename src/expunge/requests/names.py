"""Ways to write a name, and where a text has them: in another order, with initials, with typing errors.

Texts are compared without case and accents, word by word, so that a name is never found inside another word. A name of
one word counts where it is written as a name.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal
from unicodedata import normalize

import regex

from expunge.data.words import caseless, is_unspaced, placed, visible_only, words

Kind = Literal["name", "alias"]

SHORT, LONG, ALONE = 4, 9, 6
"""Letters: from the first on a word may have one typing error and from the second on two; a name of one word, one."""
REVERSED, TOGETHER, INITIAL, BETWEEN = 0.95, 0.9, 0.7, 0.75
"""Scores of the last name first, without a space, with an initial, and with a word in between."""
UNSURE, PLAIN = 0.6, 0.8
"""Scores of a name of one word that may be another word, and of a common word in the middle of a sentence."""
_MARKED = regex.compile(r"([\p{Latin}\p{Greek}\p{Cyrillic}])\p{Mn}+")
_OPENING = regex.compile(r"(?:^|[.!?:;…]|[\n\"“„«»(\[{]|[-–—*•>] )[\s\"“„«»'(\[]*$")
_DATES = frozenset(
    words(
        "january february march april may june july august september october november december monday tuesday "
        "wednesday thursday friday saturday sunday januar februar märz mai juni juli oktober dezember janvier février "
        "mars avril juin juillet août septembre octobre novembre décembre enero febrero marzo abril mayo junio julio "
        "agosto septiembre octubre noviembre diciembre gennaio febbraio aprile maggio giugno luglio settembre ottobre"
    )
)
_BEFORE_DATES = frozenset(
    words(
        "in of on since until till by last next this early mid late before after during every each from between "
        "through im seit bis am ende anfang mitte en de du depuis fin début desde hasta del di da dal"
    )
)


@lru_cache(maxsize=200_000)
def folded(word: str) -> str:
    """A word without case, and without the accents of Latin, Greek and Cyrillic letters."""
    return caseless(_MARKED.sub(r"\1", normalize("NFD", word)))


@dataclass(frozen=True)
class Text:
    """A text in normal form (NFKC, without format characters), its words, and where they stand in it."""

    plain: str
    places: list[tuple[int, int]] = field(repr=False)
    words: list[str] = field(repr=False)

    @classmethod
    def of(cls, text: str) -> "Text":
        plain = visible_only(normalize("NFKC", text))
        places = placed(plain)
        return cls(plain, places, [folded(plain[begin:end]) for begin, end in places])

    def written(self, i: int) -> str:
        """A word as the text has it."""
        return self.plain[slice(*self.places[i])]


@dataclass
class Vocabulary:
    """How often each word stands in all texts, and how often in lower case."""

    seen: Counter[str] = field(default_factory=Counter)
    lower: Counter[str] = field(default_factory=Counter)

    def add(self, text: Text) -> None:
        self.seen.update(text.words)
        self.lower.update(w for i, w in enumerate(text.words) if text.written(i)[:1].islower())

    def is_common(self, word: str) -> bool:
        """Whether a word is more often no name: written in lower case, or that of a month or a day."""
        return word in _FOLDED_DATES or 2 * self.lower[word] > self.seen[word] - self.lower[word]


_FOLDED_DATES = frozenset(map(folded, _DATES))


@dataclass(frozen=True)
class Pattern:
    """Words of a name in an order that it may be written in."""

    words: tuple[str, ...]
    name: str
    kind: Kind
    how: str = ""
    score: float = 1.0

    @property
    def letters(self) -> int:
        return sum(map(len, self.words))

    @property
    def plain(self) -> bool:
        return not self.how


@dataclass(frozen=True)
class Hit:
    """A name in a text: words `first` to `last` of it, how sure it is, what differs, and the words that are `wrong`."""

    pattern: Pattern
    first: int
    last: int
    score: float
    what: str = ""
    wrong: tuple[str, ...] = ()
    form: tuple[str, ...] = ()


def patterns(name: str, kind: Kind) -> list[Pattern]:
    """The ways in which a name may be written."""
    parts = tuple(Text.of(name).words)
    made = [Pattern(parts, name, kind)]
    if len(parts) > 1 and not any(map(is_unspaced, parts)):
        made.append(Pattern((parts[-1], *parts[:-1]), name, kind, "last name first", REVERSED))
        made.append(Pattern(("".join(parts),), name, kind, "written together", TOGETHER))
        if len(parts[0]) > 1:
            made.append(Pattern((parts[0][0], *parts[1:]), name, kind, "with an initial", INITIAL))
    return made


class Finder:
    """Finds the patterns of one person in texts whose `vocabulary` is known."""

    def __init__(self, wanted: Sequence[Pattern], vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._allowed = {p: [_near(word, p, vocabulary) for word in p.words] for p in wanted}
        self._starts: dict[str, list[Pattern]] = {}
        for pattern, allowed in self._allowed.items():
            for word in allowed[0]:
                self._starts.setdefault(word, []).append(pattern)

    def hits(self, text: Text) -> Iterator[Hit]:
        """Every place where a pattern stands, each with the best of its readings."""
        for i, word in enumerate(text.words):
            for pattern in self._starts.get(word, ()):
                hit = self._hit(text, i, pattern)
                if hit is not None:
                    yield hit

    def _hit(self, text: Text, first: int, pattern: Pattern) -> Hit | None:
        size, allowed = len(pattern.words), self._allowed[pattern]
        skips = (None, *range(1, size)) if pattern.plain else (None,)
        for skipped in skips:
            taken = [first + k + (skipped is not None and k >= skipped) for k in range(size)]
            if taken[-1] >= len(text.words):
                continue
            form = tuple(text.words[i] for i in taken)
            edits = [known.get(word) for known, word in zip(allowed, form, strict=True)]
            if None in edits:
                continue
            wrong = sum(edit or 0 for edit in edits)
            if wrong > 2 or (wrong and skipped is not None):
                continue
            misspelt = tuple(w for w, edit in zip(form, edits, strict=True) if edit)
            score, what = pattern.score, pattern.how
            if skipped is not None:
                score, what = BETWEEN, "with a word in between"
            if wrong:
                score, what = score * (1 - wrong / pattern.letters), "misspelt"
            if size == 1 and pattern.plain:
                alone = self._alone(text, first, pattern, wrong)
                if alone is None:
                    continue
                score, what = min(score, alone), what or ("" if alone == 1 else "one word, perhaps no name")
            return Hit(pattern, taken[0], taken[-1], score, what, misspelt, form)
        return None

    def _alone(self, text: Text, i: int, pattern: Pattern, wrong: int) -> float | None:
        """How sure a name of one word is; `None` where it is written as a word and not as a name."""
        word, written = text.words[i], text.written(i)
        if is_unspaced(word) or not pattern.name[:1].isupper() or any(c.isdigit() for c in word):
            return 1.0
        common = self.vocabulary.is_common(word)
        if not written[:1].isupper():
            return None if common else UNSURE
        if wrong and self.vocabulary.lower[word]:
            return None
        if not common:
            return 1.0
        shouted = len(written) > 1 and written.isupper() and not pattern.name.isupper()
        if shouted or _OPENING.search(text.plain[: text.places[i][0]]) or _is_date(text, i):
            return UNSURE
        return PLAIN


def _is_date(text: Text, i: int) -> bool:
    """Whether the word is a month or a day that is meant as one."""
    if text.words[i] not in _FOLDED_DATES:
        return False
    around = [text.words[k] for k in (i - 1, i + 1) if 0 <= k < len(text.words)]
    return any(word.isdigit() for word in around) or (i > 0 and text.words[i - 1] in _BEFORE_DATES)


def _near(word: str, pattern: Pattern, vocabulary: Vocabulary) -> dict[str, int]:
    """The words of all texts that may stand for a word of a pattern, each with its number of typing errors."""
    known = {word: 0}
    alone = len(pattern.words) == 1
    most = 0 if len(word) < (ALONE if alone else SHORT) else 1 if len(word) < LONG or alone else 2
    if most and pattern.score >= TOGETHER and word.isalpha():
        from rapidfuzz import process
        from rapidfuzz.distance import OSA

        close = process.extract(word, vocabulary.seen.keys(), scorer=OSA.distance, score_cutoff=most, limit=None)
        known |= {other: int(distance) for other, distance, _ in close}
    return known


def best(hits: Iterable[Hit]) -> Hit | None:
    """The surest of some hits, the first of equals."""
    return max(hits, key=lambda hit: hit.score, default=None)
