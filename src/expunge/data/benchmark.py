"""A benchmark, whatever its source: rows to learn, to forget, to keep, and questions to ask."""

from dataclasses import dataclass, field
from typing import Any, Literal

Row = dict[str, Any]
"""One example as a person wrote it; see `expunge.data.formats` for the columns."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with the answers that evaluation compares.

    Without a paraphrase (`None`) the answer itself takes its place, as in TOFU's utility sets.
    `perturbed_answers` are wrong answers of the same kind and form. `row` is the row that was trained on, where it says
    more than question and answer do (another format, tools, where it was read). If it has the column `passage`, its
    prompt and completion are the halves of a text, of which a model with a short context gets what is next to the
    middle.
    """

    question: str
    answer: str
    perturbed_answers: tuple[str, ...] = ()
    paraphrased_question: str | None = None
    paraphrased_answer: str | None = None
    row: Row | None = None


Comparison = Literal[
    "rouge_l_recall",
    "rouge_l_f1",
    "rouge_l_f1_stemmed",
    "rwku_rouge_l_recall",
    "token_f1",
    "exact_match",
    "rwku_exact_match",
    "states",
    "entropy",
]
"""How a generated text is compared with the right one: a function of `expunge.evals.metrics`."""


@dataclass(frozen=True, slots=True)
class Continuations:
    """Rows whose prompts are continued greedily for at most `tokens` tokens, and how the text is compared with theirs.

    `comparison` is the benchmark's own measure; `beside` names others, by what the name of their mean ends with.
    `answers` lists for every row all texts that count as right (the best one counts); without it the row's own answer.
    `kinds`, one for each row, asks for the mean of every kind beside the whole. `entropy` compares with nothing.
    What comes after any of `stops` in the text is not looked at. `whole` is asked in full, whatever limit is set.
    Probes of one `pool` have their mean over all rows of all of them, by that name.
    `forgotten` says that the answers are about what is to go, so that broken text among them is counted.
    `passages` says that the prompts are stretches of text, of which a model with a short context gets the end, and
    that a text is compared with as many tokens of the right one as it may have itself.
    `shorter` tells a person how the prompts are made to fit such a model.
    """

    name: str
    rows: list[Row]
    comparison: Comparison
    tokens: int
    answers: list[list[str]] | None = None
    kinds: list[str] | None = None
    stops: tuple[str, ...] = ()
    whole: bool = False
    pool: str | None = None
    forgotten: bool = False
    passages: bool = False
    shorter: str = ""
    beside: dict[str, Comparison] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choices:
    """Questions as a prompt and its possible continuations, `[row, …]` for each, and which of them is right.

    The choice of the highest log-probability (summed over its tokens) is the model's answer.
    """

    name: str
    choices: list[list[Row]]
    right: list[int]


@dataclass(frozen=True, slots=True)
class Membership:
    """Rows (or raw texts) that were trained on, and others, to be told apart by what the model says of them.

    `retrained_auc` is that of a model that never saw the members, where it is known without having that model.
    `sides` names the two where both were trained on, and the others are to stay so: the mean score of each is
    reported beside how well they are told apart. `whole`: as for `Continuations`.
    """

    name: str
    members: list[str] | list[Row]
    others: list[str] | list[Row]
    retrained_auc: float | None = None
    sides: tuple[str, str] | None = None
    whole: bool = False


Probe = Continuations | Choices | Membership


@dataclass(frozen=True, slots=True)
class Variant:
    """A forget row in other words, or answered wrongly; `row` is its index among the forget rows."""

    row: int
    kind: Literal["paraphrase", "perturbation"]
    text: Row


@dataclass(frozen=True, slots=True)
class Detour:
    """A forgotten fact asked for as its row does, or in a way that training did not show.

    row     index among the forget rows
    kind    the way, in words; "as it was" for the row's own question, which comes first
    value   the part of the right answer that states the fact, exactly
    before  turns of a conversation that are asked and answered first
    """

    row: int
    kind: str
    question: Question
    value: str
    before: tuple[Question, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """Everything a run needs to know of its data.

    `forget` and `retain` together are what the target model has learnt beside `utility`
    (rows that every from-scratch model is taught too, since it knows nothing else).
    `world` is all of it in an order of its own, for benchmarks whose splits share one target model.
    `variants` are for methods that train on more than the forget rows themselves; see `expunge.data.augment`.
    `unseen` are rows like the forget rows that no model of this benchmark is taught, for membership inference.
    `detours` are other ways to what the forget rows say, where the benchmark knows the facts behind its rows.
    `questions` maps a set's name (`forget`, `retain`, `real_authors`, `world_facts`) to its questions;
    `choice_sets` names those scored as multiple choice. `probes` are asked of the model beside the questions.
    """

    name: str
    split: str
    forget: list[Row]
    retain: list[Row]
    questions: dict[str, list[Question]]
    utility: list[Row] = field(default_factory=list)
    variants: list[Variant] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    unseen: list[Row] = field(default_factory=list)
    detours: list[Detour] = field(default_factory=list)
    choice_sets: frozenset[str] = frozenset({"real_authors", "world_facts"})
    world: list[Row] | None = None

    @property
    def learnt(self) -> list[Row]:
        """The rows that a from-scratch target model learns, in order: the same rows and order are the same model."""
        return [*self.retain, *self.forget, *self.utility] if self.world is None else self.world

    @property
    def taught(self) -> list[Row]:
        """The rows that a pretrained target model learns, in order: all but what it knows already (`utility`)."""
        return [*self.retain, *self.forget] if self.world is None else self.world
