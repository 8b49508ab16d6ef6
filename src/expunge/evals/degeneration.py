"""Broken text: whether a generated answer is still text, whatever it says."""

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from expunge.data.benchmark import Row
from expunge.data.encode import Encoded, encode, shortened, with_answer
from expunge.data.refusals import REFUSALS
from expunge.data.words import caseless, is_unspaced, words, words_and_marks
from expunge.evals import requests
from expunge.evals.rouge import rouge_l_recall
from expunge.modeling.causal import CausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

LoadTarget = Callable[[], tuple[Any, Any]]

SAMPLE = 32
"""Prompts of a kind to which the target's answers are taken as its usual ones."""
ELSEWHERE = (1, 3, 7)
"""Offsets, in prompts, at which each usual answer is read again, as an answer that is sound and wrong."""
LEVEL = 0.975
"""Two looks at each text, so that of sound answers in the wrong place at most one in twenty is taken for broken."""
ENDS = 8
"""Tokens from which on the second half of a text is looked at by itself."""
FEWEST = 8
"""Readings from which a limit can be drawn."""

_RUN = regex.compile(r"(\S.{0,19}?)\1{7,}", regex.DOTALL)
_NOT_PUNCTUATION = regex.compile(r"\P{P}")


def looks_broken(text: str) -> bool:
    """Whether the text alone shows that it is broken, in any script; how long it is does not matter.

    - empty: nothing but white space and punctuation;
    - repetitive: at least 8 words and marks, fewer than half of whose neighbouring pairs are distinct (of scripts
      without spaces: of whose runs of four characters); at least 3 words all the same; or the same characters, a
      letter or a number among them, at least 8 times one after the other in more than half of the text.

    Repetition is how greedy decoding from a damaged distribution fails first (Holtzman et al. 2020, arXiv 1904.09751).
    """
    tokens = words_and_marks(text)
    if not any(map(_NOT_PUNCTUATION.match, tokens)):
        return True
    n = 4 if 2 * sum(map(is_unspaced, tokens)) > len(tokens) else 2
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    if len(tokens) >= 8 and 2 * len(set(grams)) < len(grams):
        return True
    pieces = text.split()
    if len(pieces) >= 3 and len(set(pieces)) == 1:
        return True
    longest = max((len(run[0]) for run in _RUN.finditer(text) if words(run[1])), default=0)
    return 2 * longest > len(text.strip())


def is_right(text: str, answers: Sequence[str]) -> bool:
    """Whether the text is one of the answers, or says all of its words in order in at most twice as many words."""
    return any(
        _plain(text) == _plain(answer)
        or (rouge_l_recall(text, answer) == 1 and len(words(text)) <= 2 * len(words(answer)))
        for answer in answers
    )


@dataclass(frozen=True)
class Prompts:
    """The requests to the target that show how it usually answers: rows, tokens of an answer, and what ends one."""

    rows: Sequence[Row]
    tokens: int
    stops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generated:
    """A generated text, the row that it answers, the kind of prompt (a key of `Usual`), and what would be right."""

    kind: str
    row: Row
    text: str
    answers: Sequence[str]


class Usual:
    """The target model as a reader: how unlikely may a text be to it before it is no text any more?

    A text is unlikely by its perplexity under the target, here the mean negative log-probability of its tokens after
    the prompt, nats a token. Perplexity under a model that is known to be sound is the usual measure of fluency
    (Holtzman et al. 2020, arXiv 1904.09751; Liu et al. 2021, arXiv 2105.03023). But a target that has learnt the forget
    set by heart is surprised at every other answer, however well it is said. So the limit is taken from sound answers
    that are wrong: the target's own greedy answers to `SAMPLE` prompts, each read after `ELSEWHERE` other prompts. A
    text is broken when the target finds it less likely than `LEVEL` of those, each cut to as many tokens, since the
    first words of any other answer surprise most; or so its second half, since after some words sound text gets easy
    to foresee, and gibberish does not. There is no further margin: of the target's own answers, read where they
    belong, next to none reaches the limit.

    What cannot be seen is a single odd word, confident nonsense in good English, and most strings of numbers.

    The target is loaded for each lot of texts and let go of, so that nothing is held while a method trains. While it
    reads, its weights stand beside the other model's, which by then holds no gradients. What it costs: the answers to
    `SAMPLE` prompts once, and one forward of the texts that are neither right nor visibly broken.
    """

    def __init__(
        self,
        load: LoadTarget,
        asked: Callable[[Any, int], Mapping[str, Prompts]],
        *,
        refusals: Sequence[str] = REFUSALS,
    ) -> None:
        """`load` gives the target and its tokenizer; `asked` maps kinds to prompts, given it and the context length.

        `refusals` are what methods may teach the model to say instead, which the target need not find likely.
        """
        self._load = load
        self.refusals = frozenset(map(_plain, refusals))
        model, tokenizer = load()
        kinds = asked(tokenizer, requests.context_length(model))
        self.readings = {kind: _read_elsewhere(model, tokenizer, prompts) for kind, prompts in kinds.items()}
        for kind, readings in self.readings.items():
            if len(readings) < FEWEST:
                log.warning(
                    "%s: too few prompts to learn how the target answers; broken text is judged by itself", kind
                )
        del model
        gc.collect()

    def limits(self, kind: str, tokens: int) -> tuple[float, float] | None:
        """Nats a token above which a text of this many tokens, or its second half, is broken; None if unknown."""
        cut = [nll[:tokens] for nll in self.readings.get(kind, [])]
        if len(cut) < FEWEST:
            return None
        means = np.array([(nll.mean(), _second_half(nll).mean()) for nll in cut])
        whole, end = np.quantile(means, LEVEL, axis=0)
        return float(whole), float(end)

    def read(self, answers: Sequence[Generated]) -> list[dict[str, Any]]:
        """For each text the fields of `judge`, by what the target finds."""
        if not answers:
            return []
        model, tokenizer = self._load()
        read = _nlls(model, tokenizer, [(t.row, t.text) for t in answers])
        del model
        gc.collect()
        judgements: list[dict[str, Any]] = []
        for t, nll in zip(answers, read, strict=True):
            limits = self.limits(t.kind, len(nll))
            if not len(nll) or limits is None:
                judgements.append(_UNREAD)
                continue
            whole, end = float(nll.mean()), float(_second_half(nll).mean())
            broken = whole > limits[0] or (len(nll) >= ENDS and end > limits[1])
            numbers = zip(FIELDS, (whole, limits[0], end, limits[1]), strict=True)
            judgements.append({"degenerate": broken, **dict(numbers)})
        return judgements


FIELDS = ("target_nll", "usual_nll", "target_nll_end", "usual_nll_end")
"""The target's surprise at a text and the limit of it, nats a token: of the whole text and of its second half."""
_UNREAD: dict[str, Any] = {"degenerate": False, **dict.fromkeys(FIELDS)}


def judge(answers: Sequence[Generated], usual: Usual | None) -> list[dict[str, Any]]:
    """For each text whether it is `degenerate`, and `FIELDS`, None where the target was not asked.

    A right answer and a refusal are never broken. Without `usual` the text alone is looked at.
    """
    refusals = frozenset(map(_plain, REFUSALS)) if usual is None else usual.refusals
    sound = [_plain(t.text) in refusals or is_right(t.text, t.answers) for t in answers]
    judgements = [
        {**_UNREAD, "degenerate": not ok and looks_broken(t.text)} for ok, t in zip(sound, answers, strict=True)
    ]
    if usual is not None:
        unsure = [i for i, ok in enumerate(sound) if not ok and not judgements[i]["degenerate"]]
        for i, fields in zip(unsure, usual.read([answers[i] for i in unsure]), strict=True):
            judgements[i] = fields
    return judgements


def before(text: str, stops: Sequence[str]) -> str:
    """A generated text up to the first of `stops`."""
    for stop in stops:
        text = text.split(stop)[0]
    return text.strip()


def _plain(text: str) -> str:
    return " ".join(caseless(text).split())


def _read_elsewhere(model: CausalLM, tokenizer: "PreTrainedTokenizerBase", asked: Prompts) -> list[np.ndarray]:
    """The target's usual answers as it reads them after other prompts, see `_nlls`."""
    count = min(SAMPLE, len(asked.rows))
    if not count:
        return []
    rows = [asked.rows[i * len(asked.rows) // count] for i in range(count)]
    room = requests.context_length(model) - asked.tokens
    encoded = [shortened(encode(row, tokenizer), room, tokenizer) for row in rows]
    prompts = [e.input_ids[: e.start] for e in encoded]
    answers = requests.generate(model, tokenizer, prompts, max_new_tokens=asked.tokens, progress=False)
    texts = [before(t.text, asked.stops) for t in answers]
    pairs = {
        (i, (i + further) % count): text
        for further in ELSEWHERE
        for i, text in enumerate(texts)
        if not looks_broken(text) and text != texts[(i + further) % count]
    }
    read = _nlls(model, tokenizer, [(rows[at], text) for (_, at), text in pairs.items()])
    return [nll for nll in read if len(nll)]


def _nlls(model: CausalLM, tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[tuple[Row, str]]) -> list[np.ndarray]:
    """For each row and text, −log p of every token of the text as the row's answer, float64."""
    context = requests.context_length(model)
    sequences: list[Encoded | None] = []
    for row, text in pairs:
        e = encode(with_answer(row, text), tokenizer)
        tokens = len(e) - 1 - e.start  # the end token is no part of the text
        e = shortened(Encoded(e.input_ids[:-1], e.start), max(context // 2, context - tokens), tokenizer)
        sequences.append(e.cut(context) if tokens > 0 and e.start < context else None)
    scores = iter(requests.score(model, [s for s in sequences if s is not None], progress=False))
    return [-next(scores).logps.astype(np.float64) if s is not None else np.zeros(0) for s in sequences]


def _second_half(nll: np.ndarray) -> np.ndarray:
    return nll[len(nll) // 2 :]
