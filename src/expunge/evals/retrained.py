"""The retrained model as far as others are measured against it, when the model itself is gone.

Knows its records and what it says at every token of the forget answers; knows nothing of files or training.
Source of the distances: figure 5 of Vasilev et al. 2025, arXiv 2505.06027.

Shapes: `N` supervised tokens of a batch laid end to end, `C` those of a chunk, `D` hidden size, `V` vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from expunge.data.benchmark import Question
from expunge.data.encode import Encoded
from expunge.evals.divergence import SoftLabels, kl
from expunge.evals.requests import at_answers, fit
from expunge.evals.tofu import Record, encode_answers
from expunge.logprobs import CHUNK, Head

Distance = Callable[[Any, Any], dict[str, float]]
"""(model, tokenizer) → how far the model is from the retrained one."""


class Retrained:
    """Its `records`, and its next-token distributions over the answers to the forget `questions`.

    A distribution is kept as the last hidden state (D numbers a token), and the output head once, all of it on the CPU.
    """

    def __init__(
        self, model: Any, tokenizer: Any, questions: Sequence[Question], records: Mapping[str, Sequence[Record]]
    ) -> None:
        self.records = records
        self.questions = questions
        answers = fit(model, encode_answers(questions, tokenizer))
        hidden = at_answers(model, answers, lambda _rows, hidden_ND, *_: hidden_ND, progress=False)
        self.hidden: dict[Encoded, Tensor] = dict(zip(answers, hidden, strict=True))
        self.head = Head.at_start(model).to(torch.device("cpu"))

    def distance(self, model: Any, tokenizer: Any, labels: SoftLabels | None = None) -> dict[str, float]:
        """Means over all tokens of the forget answers, nats per token:

        - `kl_unlearned`: KL(p_retrained ‖ p) of the model;
        - `kl_soft_labels`: KL(p_retrained ‖ soft labels), given `labels` to make of the model's logits.

        Range [0, ∞]. Good: 0, and certainly below what the model before unlearning has.
        Nothing is returned where there are no such questions or where the two models see other tokens in them: with
        another vocabulary there is no distance.
        """
        answers = fit(model, encode_answers(self.questions, tokenizer))
        same = model.get_output_embeddings().weight.shape[0] == self.head.vocab_size
        if not answers or not same or any(answer not in self.hidden for answer in answers):
            return {}
        retrained = self.head.to(model.device)

        def at_head(rows: Sequence[Encoded], hidden_ND: Tensor, target_N: Tensor, head: Head) -> Tensor:
            def chunk(hidden_CD: Tensor, retrained_CD: Tensor, target_C: Tensor) -> Tensor:
                retrained_CV, z_CV = retrained.logits(retrained_CD).log_softmax(-1), head.logits(hidden_CD)
                others = [z_CV.log_softmax(-1), *([labels(z_CV, target_C)] if labels else [])]
                return torch.stack([kl(retrained_CV, other_CV) for other_CV in others], -1)

            retrained_ND = torch.cat([self.hidden[row] for row in rows]).to(hidden_ND.device)
            columns = (x.split(CHUNK) for x in (hidden_ND, retrained_ND, target_N))
            return torch.cat([chunk(*parts) for parts in zip(*columns, strict=True)])

        mean = torch.cat(at_answers(model, answers, at_head, progress=False)).double().mean(0).tolist()
        return dict(zip(("kl_unlearned", "kl_soft_labels"), mean, strict=False))

    def distance_towards(self, labels: SoftLabels, start: Any, tokenizer: Any) -> Distance:
        """`distance` for a method that pulls towards `labels`, given the model before unlearning.

        Labels that don't move are made of that model, once. What they were at the start is `kl_soft_labels_start`.
        """
        first = self.distance(start, tokenizer, labels).get("kl_soft_labels")
        if first is None:
            return self.distance
        fixed = {"kl_soft_labels_start": first, **({} if labels.moves else {"kl_soft_labels": first})}
        moving = labels if labels.moves else None
        return lambda model, tokenizer: self.distance(model, tokenizer, moving) | fixed
