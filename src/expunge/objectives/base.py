"""An objective: a frozen config, the signals it needs, and a few lines of tensor maths.

Shapes: N supervised tokens of the batch laid end to end, B sequences, D hidden size, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from pydantic import Field, model_validator
from torch import Tensor

from expunge.system.imports import is_ours, path_of
from expunge.system.options import Options

_ABSENT: Any = None

Removal = Literal["weights", "inference"]
"""Whether a method takes the knowledge out of the weights or keeps it from showing at inference."""

Trained = Literal["model", "assistant", "difference", "student"]
"""The part that a method trains: the model itself; an assistant, alone or through the difference with the model; or,
once the difference is there, the model towards it."""

ScoreName = Literal["logp", "log_odds", "uniform_ce", "margin"]
"""A number of one token that the model's logits alone give; see the fields of these names in `Signals`."""
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)


@dataclass(frozen=True)
class Divergence:
    """A comparison of the model's next-token distribution p with the reference's p⁰, per token.

    `kind`: `forward` is KL(p⁰ ‖ p), `reverse` is KL(p ‖ p⁰), `cross_entropy` is −Σ p⁰ log p, and `jensen_shannon` is
    ½ KL(p⁰ ‖ m) + ½ KL(p ‖ m) with m = ½ (p⁰ + p).
    `shift` is subtracted from the reference's logit of the target token before its softmax (UnDIAL), and all of them
    are divided by `temperature`.
    """

    kind: Literal["forward", "reverse", "cross_entropy", "jensen_shannon"]
    shift: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True)
class Needs:
    """The signals an objective reads; each field stands for the one of the same name in `Signals`."""

    logp: bool = False
    log_odds: bool = False
    uniform_ce: bool = False
    margin: bool = False
    reference_logp: bool = False
    divergence: Divergence | None = None
    layer: int | None = None
    reference_layer: bool = False
    surprisal: bool = False
    refusal: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        """The needs of both; of two different divergences `other`'s, since both read the same hidden states."""
        asked = {f.name: getattr(other, f.name) for f in fields(Needs)}
        return replace(self, **{name: value for name, value in asked.items() if value not in (None, False)})

    @property
    def reference(self) -> bool:
        """Whether anything is asked of the starting model."""
        return self.reference_logp or self.divergence is not None or self.reference_layer

    @property
    def scores(self) -> tuple[ScoreName, ...]:
        """The scores that are asked of the output head."""
        return tuple(score for score in SCORES if getattr(self, score))

    @property
    def head(self) -> bool:
        """Whether the output head must run at all."""
        return bool(self.scores) or self.divergence is not None

    @property
    def number(self) -> str:
        """The one signal that is asked of the head; empty for several, and where refusals or a layer matter too."""
        asked = [*self.scores, *(["divergence"] if self.divergence is not None else [])]
        return "" if len(asked) != 1 or self.refusal or self.layer is not None else f"{asked[0]}_N"


@dataclass
class Signals:
    """Per-token numbers of the sequences of one role; fields that were not asked for stay `None`.

    logp_N            log p of the target token under the model, float32 (float64 for float64 models), with gradient
    log_odds_N        log p/(1 − p) of the target token, with gradient: log p = logsigmoid(log_odds) and log(1 − p) =
                      logsigmoid(−log_odds) to every digit, where `logp_N` has none left of a 1 − p below 1e-7
    uniform_ce_N      cross-entropy from the uniform distribution to the model's, −mean_v log p_v, nats, with gradient
    margin_N          largest logit less the mean of all, with gradient
    reference_logp_N  log p of the target token under the starting model, no gradient
    divergence_N      as asked for by `Needs.divergence`, with gradient to the model only
    layer_ND          hidden state after the asked-for decoder layer at the positions that predict the targets
    reference_layer_ND  the same of the starting model
    surprisal_N       −log of the target's frequency among the supervised tokens of the training data, nats
    sequence_N        index in 0..sequences-1 of the sequence each token belongs to
    place_N           how many supervised tokens of its sequence come before each token
    refusal           signals of the refusals drawn for the same prompts, sequence by sequence
    """

    vocab_size: int
    sequence_N: Tensor
    sequences: int
    place_N: Tensor = _ABSENT
    logp_N: Tensor = _ABSENT
    log_odds_N: Tensor = _ABSENT
    uniform_ce_N: Tensor = _ABSENT
    margin_N: Tensor = _ABSENT
    reference_logp_N: Tensor = _ABSENT
    divergence_N: Tensor = _ABSENT
    layer_ND: Tensor = _ABSENT
    reference_layer_ND: Tensor = _ABSENT
    surprisal_N: Tensor = _ABSENT
    refusal: "Signals" = _ABSENT

    def part(self, tokens: slice, sequences: slice) -> "Signals":
        """The signals of these tokens alone, which lie in these sequences; without those of the refusals."""
        values: dict[str, Any] = {
            f.name: x[tokens] for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)
        }
        values["sequence_N"] = values["sequence_N"] - sequences.start
        return Signals(self.vocab_size, sequences=sequences.stop - sequences.start, **values)

    def sequence_sum(self, x_N: Tensor) -> Tensor:
        """Sum a per-token number over each sequence: [N] → [B]."""
        return x_N.new_zeros(self.sequences).index_add(0, self.sequence_N, x_N)

    def sequence_length(self) -> Tensor:
        """Supervised tokens of each sequence, [B]."""
        return torch.bincount(self.sequence_N, minlength=self.sequences)


@dataclass(frozen=True)
class Wanted:
    """A text that should be said in place of an answer; with `ends` the end token is part of it."""

    text: str
    ends: bool = False


WrongAnswers = Literal["forget", "retain", "preferred"]


class Way(Options, ABC):
    """The entry under `forget` in a recipe: an objective, or a step on the weights. It has a name and needs."""

    removal: ClassVar[Removal] = "weights"
    trains: ClassVar[Trained] = "model"
    alone: ClassVar[bool] = False
    """Whether no other retain term than its own can be joined to it."""
    variants: ClassVar[Mapping[str, int]] = {}
    """How many `paraphrases` and `perturbations` of each forget row it trains on when the recipe does not say."""
    wrong_answers: ClassVar[WrongAnswers] = "retain"
    """The rows that wrong answers to the forget questions (`perturbations`) are joined to; with `preferred` each is
    what a forget row prefers to its own answer."""

    @classmethod
    def recipe_name(cls) -> str:
        """The name of the class in recipes: that of its field `name`, or the import path of a class of your own."""
        return cls.model_fields["name"].default if is_ours(cls) else path_of(cls)

    @property
    def title(self) -> str:
        """Its name in results: as in recipes, or the name of a class of your own in lower case."""
        return self.recipe_name().rpartition(":")[2].rpartition(".")[2].lower()

    @property
    def own_retain(self) -> "Objective | None":
        """The retain term that it brings."""
        return None

    @property
    def pace(self) -> dict[str, float]:
        """Training arguments of its own, which a method's `train` may override."""
        return {}

    @property
    def parts(self) -> tuple[range, tuple[str, ...]] | None:
        """The decoder layers, and the modules in them (all without any), that alone train; `None` for all that can."""
        return None

    @property
    @abstractmethod
    def needs(self) -> Needs: ...


class Objective(Way):
    """One term of the loss, `weight · mean(loss(signals))`.

    `per` says over what the trainer takes the mean: all supervised tokens of the optimizer step, or all its sequences.
    """

    per: ClassVar[Literal["token", "sequence"]] = "token"
    rate_factor: ClassVar[float] = 1.0
    """The learning rate that suits it, as a multiple of the usual one (docs/explanation/pace.md)."""

    weight: float = Field(default=1.0, ge=0, description="factor of this term in the loss")

    @property
    def skips(self) -> int:
        """How many supervised tokens at the start of each sequence the loss leaves out; the mean doesn't count them."""
        return 0

    @property
    def wanted(self) -> Wanted | None:
        """An answer whose tokens, over and over, are the targets in place of those of the answers to forget.

        The model still reads the answers as they are; the signals of a target token are of these tokens then.
        """
        return None

    @abstractmethod
    def loss(self, s: Signals) -> Tensor:
        """The loss of every token, [N], or of every sequence, [B], as `per` says."""


class Kept(Objective):
    """An objective on the rows to keep, whose loss may have a budget.

    With one, `weight` is where the term's weight starts, and `training/dual.py` says how it goes on.
    """

    budget: float | None = Field(
        default=None,
        ge=0,
        description="the loss that the term may have; its weight rises while the loss is above, and falls below",
    )
    budget_rate: float = Field(
        default=1.0, gt=0, description="by how much the weight changes for a loss 1 off its budget"
    )

    @model_validator(mode="after")
    def _rate_of_a_budget(self) -> Self:
        if self.budget is None and self.budget_rate != type(self).model_fields["budget_rate"].default:
            raise ValueError("budget_rate does nothing without a budget; give one, or leave budget_rate out")
        return self


@dataclass(frozen=True)
class Share:
    """The part of the loss from one role's signals: the objective's weight times their term of it."""

    objective: Objective
    count: Tensor | float
    """Number of the tokens or sequences that the term is a mean over."""

    def term(self, signals: Signals) -> Tensor:
        return self.objective.loss(signals).sum() / self.count

    def gradient(self, known: Signals, name: str, number_C: Tensor) -> Tensor:
        """The loss's gradient by a chunk's numbers: the signal `name`, beside those that are `known`."""
        with torch.enable_grad():
            number_C = number_C.detach().requires_grad_()
            term = self.term(replace(known, **{name: number_C}))
        return self.objective.weight * torch.autograd.grad(term, number_C)[0]
