"""Objectives of the methods that train an assistant beside the model: ULD, its distillation, and the Offset forms."""

from collections.abc import Mapping
from math import log
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import huber_loss

from expunge.objectives.base import Divergence, Needs, Objective, Removal, Signals, Trained, WrongAnswers
from expunge.objectives.distill import KL
from expunge.objectives.likelihood import GA
from expunge.objectives.preference import DPO, NPO


class Uniform(Objective):
    """Know nothing of these rows: cross-entropy from the uniform distribution to the model's, less log V.

    Zero where every token is equally likely. Over supervised tokens only.
    Source: Ji et al. 2024, arXiv 2406.08607, eq. 6.
    """

    name: Literal["uniform"] = "uniform"

    @property
    def needs(self) -> Needs:
        return Needs(uniform_ce=True)

    def loss(self, s: Signals) -> Tensor:
        return s.uniform_ce_N - log(s.vocab_size)


class Subtraction(Objective):
    """Settings of ULD's assistant: how it is cut, trained and subtracted."""

    alone: ClassVar[bool] = True
    variants: ClassVar[Mapping[str, int]] = {"paraphrases": 4, "perturbations": 1}

    name: Any
    alpha: float = Field(default=0.8, gt=0, description="how much of the assistant's logits is subtracted")
    tau: float = Field(
        default=1e-2,
        ge=0,
        lt=1,
        description="plausibility threshold; tokens under it gain nothing from the subtraction",
    )
    beta: float = Field(default=5.0, ge=0, description="weight of the uniform cross-entropy in the assistant's loss")
    layers: int | None = Field(
        default=None, ge=1, description="the assistant's layers; default a quarter of the model's"
    )
    r: int = Field(default=16, ge=1, description="rank of the assistant's LoRA adapter")
    learning_rate: float = Field(default=1e-3, gt=0, description="of the assistant")
    epochs: float = Field(default=10, gt=0, description="of the assistant")


class ULD(Subtraction):
    """Unlearning from logit difference: an assistant learns the forget rows, then z = z_model − α z_assistant.

    The assistant is the model's first `layers` layers (a quarter of them by default) with a LoRA adapter of rank `r`.
    It minimises −ℓ on the forget rows and their paraphrases plus β times the uniform cross-entropy on the retain rows
    and on wrong answers to the forget questions, with a learning rate and a number of epochs of its own.
    Tokens under the plausibility threshold `tau` gain nothing from the subtraction.
    Use when suppression at inference is enough: best balance of all, seconds of training, and the weights stay as
    they are. Source: Ji et al. 2024, arXiv 2406.08607, eqs. 3-6.
    """

    removal: ClassVar[Removal] = "inference"
    trains: ClassVar[Trained] = "assistant"

    name: Literal["uld"] = "uld"

    @property
    def own_retain(self) -> Objective:
        return Uniform(weight=self.beta)

    @property
    def pace(self) -> dict[str, float]:
        return {"learning_rate": self.learning_rate, "num_train_epochs": self.epochs}

    @property
    def needs(self) -> Needs:
        return Needs(logp=True)

    def loss(self, s: Signals) -> Tensor:
        return -s.logp_N


class ULDDistilled(Subtraction):
    """ULD, then the model itself is trained towards the difference: one ordinary checkpoint.

    On forget rows, paraphrases and wrong answers, by `match`:

    - `logp`: Huber's loss of log p_y − log q_y, with q_y what the difference gives the answer's token. The other tokens
      keep the model's own proportions, as Unilogit lets them, whose aim for p_y is 1/V. One number a token, no logits.
    - `forward`, `reverse`: KL(q ‖ p), KL(p ‖ q) of whole distributions, q at a `temperature`; slower, harder to fit.

    On retain rows, `keep` times KL to the model as it was: the difference has lost a little there already. The
    recipe's `train` is for this part; `learning_rate` and `epochs` are the assistant's. With `teacher`, a checkpoint
    that ULD saved or the name of a method that stands earlier in the recipe, no assistant is trained, and only an
    `alpha` or `tau` that is given takes the place of its own.
    Use when the weights themselves must be clean, or any engine must serve the model.
    Source: ours; the teacher is of Ji et al. 2024, arXiv 2406.08607, self-distillation as in Vasilev et al. 2025,
    arXiv 2505.06027.
    """

    trains: ClassVar[Trained] = "student"
    rate_factor: ClassVar[float] = 4.0
    wrong_answers: ClassVar[WrongAnswers] = "forget"  # what the difference says of them is learnt, too

    name: Literal["uld_distilled"] = "uld_distilled"
    match: Literal["logp", "forward", "reverse"] = Field(
        default="logp", description="what of the difference the model is trained towards, see above"
    )
    keep: float = Field(default=3.0, ge=0, description="weight of KL to the starting model on retain rows")
    temperature: float = Field(
        default=1.0, gt=0, description="of the difference's distribution, for `forward` and `reverse`"
    )
    teacher: str | None = Field(
        default=None,
        description="folder of a checkpoint that ULD saved, or an earlier method of the recipe; then no assistant is "
        "trained",
    )

    @property
    def own_retain(self) -> Objective:
        return KL(weight=self.keep)

    @property
    def teaching(self) -> ULD:
        """The method that trains the teacher where none is named."""
        return ULD(**{name: getattr(self, name) for name in ULD.model_fields if name != "name"})

    @property
    def needs(self) -> Needs:
        if self.match == "logp":
            return Needs(logp=True, reference_logp=True)
        return Needs(divergence=Divergence(self.match, temperature=self.temperature))

    def loss(self, s: Signals) -> Tensor:
        if self.match == "logp":
            return huber_loss(s.logp_N, s.reference_logp_N.to(s.logp_N), reduction="none")
        return s.divergence_N


class Offset(Objective):
    """Settings of the Offset forms: z = z_model + `scale` · (z_assistant − z⁰_assistant), only the assistant trains.

    `assistant` names a small model with the same vocabulary; without it the assistant is the model's first `layers`
    layers with a LoRA adapter of rank `r`. Source: Huang et al. 2024, arXiv 2404.11045.
    """

    removal: ClassVar[Removal] = "inference"
    trains: ClassVar[Trained] = "difference"

    name: Any
    scale: float = Field(default=1.0, gt=0, description="w, the weight of the assistant's change")
    assistant: str | None = Field(
        default=None,
        description="folder or hub name of a small model with the same vocabulary; default the model's first layers",
    )
    layers: int | None = Field(
        default=None, ge=1, description="the assistant's layers; default a quarter of the model's"
    )
    r: int = Field(default=16, ge=1, description="rank of the assistant's LoRA adapter")


class OffsetGA(GA, Offset):
    """Gradient ascent through an assistant's logits.

    Use to compare ULD with. Source: Huang et al. 2024, arXiv 2404.11045, with the loss of `ga`.
    """

    name: Literal["offset-ga"] = "offset-ga"  # pyright: ignore[reportIncompatibleVariableOverride]


class OffsetDPO(DPO, Offset):
    """DPO towards a refusal through an assistant's logits.

    Use to compare ULD with. Source: Huang et al. 2024, arXiv 2404.11045, with the loss of `dpo`.
    """

    name: Literal["offset-dpo"] = "offset-dpo"  # pyright: ignore[reportIncompatibleVariableOverride]


class OffsetNPO(NPO, Offset):
    """NPO through an assistant's logits.

    Use to compare ULD with. Source: Huang et al. 2024, arXiv 2404.11045, with the loss of `npo`.
    """

    name: Literal["offset-npo"] = "offset-npo"  # pyright: ignore[reportIncompatibleVariableOverride]
