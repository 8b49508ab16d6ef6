"""The retrained model as far as others are measured against it, when the model itself is gone.

Source of the distances: figure 5 of Vasilev et al. 2025, arXiv 2505.06027.

Shapes: `N` supervised tokens of a batch laid end to end, `C` those of a chunk, `D` hidden size, `V` vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from expunge.data.benchmark import Question
from expunge.data.encode import Encoded
from expunge.evals.divergence import SoftLabels, kl
from expunge.evals.requests import Ask, at_answers, context_length, fit
from expunge.evals.tofu import Record, encode_answers
from expunge.modeling.agreement import ways_of
from expunge.modeling.causal import CausalLM
from expunge.modeling.logprobs import CHUNK, Head

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Retrained:
    """Its `records`, and its next-token distributions over the answers to the forget `questions`.

    A distribution is kept as the last hidden state (D numbers a token), and the output head once, all of it on the CPU.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: "PreTrainedTokenizerBase",
        questions: Sequence[Question],
        records: Mapping[str, Sequence[Record]],
    ) -> None:
        self.records = records
        self.questions = questions
        answers = fit(model, encode_answers(questions, tokenizer, context_length(model)))
        (hidden,) = at_answers(model, [Ask(answers, lambda _where, hidden_ND, *_: hidden_ND)], progress=False)
        self.hidden: dict[Encoded, Tensor] = dict(zip(answers, hidden, strict=True))
        ways = ways_of(model)
        head = Head.identity(ways.vocab_size) if ways.dense else Head.at_start(model)
        self.head = head.to(torch.device("cpu"))

    def distance(
        self, model: CausalLM, tokenizer: "PreTrainedTokenizerBase", labels: SoftLabels | None = None
    ) -> dict[str, float]:
        """`Distance` of one model, measured alone."""
        return Distance(self, labels)(model, tokenizer)

    def distance_towards(self, labels: SoftLabels, start: Any, tokenizer: "PreTrainedTokenizerBase") -> "Distance":
        """`Distance` for a method that pulls towards `labels`, given the model before unlearning.

        Labels that don't move are made of that model, once. What they were at the start is `kl_soft_labels_start`.
        """
        first = self.distance(start, tokenizer, labels).get("kl_soft_labels")
        if first is None:
            return Distance(self)
        fixed = {"kl_soft_labels_start": first, **({} if labels.moves else {"kl_soft_labels": first})}
        return Distance(self, labels if labels.moves else None, fixed)


@dataclass(frozen=True)
class Distance:
    """How far a model is from the retrained one, as a question among others. Means over the forget answers' tokens:

    - `kl_unlearned`: KL(p_retrained ‖ p) of the model, nats per token;
    - `kl_soft_labels`: KL(p_retrained ‖ soft labels), given `labels` to make of the model's logits;
    - `fixed`: what is known beforehand.

    Range [0, ∞]. Good: 0, and certainly below what the model before unlearning has.
    """

    retrained: Retrained
    labels: SoftLabels | None = None
    fixed: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, model: CausalLM, tokenizer: "PreTrainedTokenizerBase") -> dict[str, float]:
        """Measured alone."""
        return self.metrics(at_answers(model, self.asks(model, tokenizer), progress=False))

    def asks(self, model: CausalLM, tokenizer: "PreTrainedTokenizerBase") -> list[Ask]:
        """The request to the model (`requests.at_answers`), or none.

        None where there are no such questions or where the two models see other tokens in them: with another
        vocabulary there is no distance.
        """
        gold = self.retrained
        answers = fit(model, encode_answers(gold.questions, tokenizer, context_length(model)))
        same = ways_of(model).vocab_size == gold.head.vocab_size
        if not answers or not same or any(answer not in gold.hidden for answer in answers):
            return []
        retrained = gold.head.to(model.device)

        def chunk(head: Head, hidden_CD: Tensor, retrained_CD: Tensor, target_C: Tensor) -> Tensor:
            retrained_CV, z_CV = retrained.logits(retrained_CD).log_softmax(-1), head.logits(hidden_CD)
            others = [z_CV.log_softmax(-1), *([self.labels(z_CV, target_C)] if self.labels else [])]
            return torch.stack([kl(retrained_CV, other_CV) for other_CV in others], -1)

        def at_head(where: Sequence[tuple[Encoded, int]], hidden_ND: Tensor, target_N: Tensor, head: Head) -> Tensor:
            retrained_ND = torch.stack([gold.hidden[sequence][i] for sequence, i in where]).to(hidden_ND.device)
            columns = (x.split(CHUNK) for x in (hidden_ND, retrained_ND, target_N))
            return torch.cat([chunk(head, *parts) for parts in zip(*columns, strict=True)])

        return [Ask(answers, at_head)]

    def metrics(self, values: Sequence[Sequence[Tensor]]) -> dict[str, float]:
        """Metrics from `values`, one entry for each of `asks`."""
        if not values:
            return {}
        (kls,) = values
        mean = torch.cat(list(kls)).double().mean(0).tolist()
        return {**dict(zip(("kl_unlearned", "kl_soft_labels"), mean, strict=False)), **self.fixed}
