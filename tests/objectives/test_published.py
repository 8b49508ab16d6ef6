"""The options that give the published codes' losses, each against that code's definition on a batch's dense logits.

Through the trainer, so that what a mean is taken over is part of the comparison: loss and gradient of every weight, in
float64. Shapes: B sequences, T positions, V vocabulary.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from expunge import UnlearnConfig, UnlearnTrainer, objectives
from expunge.data.pairs import Role
from expunge.errors import UserError
from expunge.objectives import Objective

FORGET = [
    {"question": "Who wrote it?", "answer": "Nobody that I have ever heard of."},
    {"question": "Where was she born?", "answer": "In Tarn."},
    {"question": "When?", "answer": "On the ninth day of a long and very wet May."},
]
RETAIN = [
    {"question": "What is water?", "answer": "Two gases, one on fire."},
    {"question": "Which river runs there?", "answer": "The Ill runs through all of it."},
    {"question": "How many?", "answer": "Four."},
]
REFUSALS = ["I don't know.", "That is not known to me."]


class Published:
    """A model's dense outputs on the forget and the retain rows, as the published trainers see them."""

    def __init__(self, model: Any, start: Any, batch: dict[str, Tensor], tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.logits: dict[Role, Tensor] = {}
        self.start: dict[Role, Tensor] = {}
        self.hidden: dict[Role, Tensor] = {}
        self.start_hidden: dict[Role, Tensor] = {}
        self.labels: dict[Role, Tensor] = {}
        for role in Role:
            mine = batch["role"] == role
            if not mine.any():
                continue
            inputs = {name: batch[name][mine] for name in ("input_ids", "attention_mask")}
            out, before = (m(**inputs, output_hidden_states=True) for m in (model, start))
            self.logits[role], self.start[role] = out.logits[:, :-1], before.logits[:, :-1].detach()
            self.hidden[role] = out.hidden_states[2][:, :-1]
            self.start_hidden[role] = before.hidden_states[2][:, :-1].detach()
            self.labels[role] = batch["labels"][mine]

    def nll(self, role: Role, logits: dict[Role, Tensor] | None = None) -> Tensor:
        """Of every token, 0 where nothing is supervised, [B, T − 1]."""
        z_BTV = (self.logits if logits is None else logits)[role]
        return F.cross_entropy(z_BTV.transpose(-1, -2), self.labels[role][:, 1:], ignore_index=-100, reduction="none")

    def told(self, role: Role) -> Tensor:
        return self.labels[role][:, 1:] != -100


def ceu(p: Published) -> Tensor:
    """OpenUnlearning, `ceu.py`, with one answer token left out, less the entropy of its target, a constant."""
    labels = p.labels[Role.FORGET]
    answer = labels != -100
    labels = labels.masked_fill((answer.cumsum(-1) <= 1) & answer, -100)[:, 1:]
    kept = labels != -100
    z_NV, y_N1 = p.logits[Role.FORGET][kept], labels[kept][:, None]
    q_NV = z_NV.detach().scatter(-1, y_N1, -torch.inf).softmax(-1)
    return F.cross_entropy(z_NV, q_NV) + torch.special.entr(q_NV).sum(-1).mean() * -1


def rmu(p: Published) -> Tensor:
    """WMDP, `rmu/unlearn.py`: mean squared errors over tokens and hidden size; α of the retain term 100."""
    u_D = torch.rand(p.hidden[Role.FORGET].shape[-1], generator=torch.Generator().manual_seed(0))
    control_D = (u_D / u_D.norm()).double() * 20
    forget_ND, retain_ND = (p.hidden[role][p.told(role)] for role in (Role.FORGET, Role.RETAIN))
    return F.mse_loss(forget_ND, control_D.expand_as(forget_ND)) + 100 * F.mse_loss(
        retain_ND, p.start_hidden[Role.RETAIN][p.told(Role.RETAIN)]
    )


def simnpo(p: Published) -> Tensor:
    """Unlearn-Simple, `simnpo_grad_diff` with γ = .5; the forget term times .125, as in OpenUnlearning's recipe."""
    mean_B = p.nll(Role.FORGET).sum(-1) / p.told(Role.FORGET).sum(-1) - 0.5
    forget = -F.logsigmoid(4.5 * mean_B).mean() * 2 / 4.5
    return 0.125 * forget + p.nll(Role.RETAIN).sum() / p.told(Role.RETAIN).sum()


def satimp(p: Published) -> Tensor:
    """OpenUnlearning, `satimp.py` with its recipe's weights: forget .1, retain 1."""
    nll_N = p.nll(Role.FORGET)[p.told(Role.FORGET)]
    p_N = (-nll_N).exp().detach()
    return 0.1 * -(p_N**5 * (1 - p_N) * nll_N).mean() + p.nll(Role.RETAIN).sum() / p.told(Role.RETAIN).sum()


def wga(p: Published) -> Tensor:
    nll_N = p.nll(Role.FORGET)[p.told(Role.FORGET)]
    return -((-nll_N).exp().detach() * nll_N).mean() + p.nll(Role.RETAIN).sum() / p.told(Role.RETAIN).sum()


def npo(p: Published) -> Tensor:
    """NPO's own code: −2/β log σ(β (nll − nll⁰)), mean over answers."""
    ratio_B = (p.nll(Role.FORGET) - p.nll(Role.FORGET, p.start)).sum(-1)
    return -F.logsigmoid(0.1 * ratio_B).mean() * 2 / 0.1


def dpo(p: Published) -> Tensor:
    """The same code's `dpo`, with the factor 2/β."""
    win_B, lose_B = ((p.nll(role, p.start) - p.nll(role)).sum(-1) for role in (Role.REFUSAL, Role.FORGET))
    return -F.logsigmoid(0.1 * (win_B - lose_B)).mean() * 2 / 0.1


def undial(p: Published) -> Tensor:
    """OpenUnlearning's `compute_undial_loss`, over supervised positions instead of all."""
    told = p.told(Role.FORGET)
    y_N1 = p.labels[Role.FORGET][:, 1:][told][:, None]
    teacher_NV = p.start[Role.FORGET][told]
    teacher_NV = teacher_NV - 10 * torch.zeros_like(teacher_NV).scatter(-1, y_N1, 1.0)
    return F.cross_entropy(p.logits[Role.FORGET][told], teacher_NV.softmax(-1))


def pdu(p: Published) -> Tensor:
    """OpenUnlearning, `pdu.py` without its dual updates, over supervised positions instead of all."""
    z_NV = p.logits[Role.FORGET][p.told(Role.FORGET)]
    forget = ((z_NV.max(-1)[0] - z_NV.mean(-1)) ** 2).mean()
    return forget + p.nll(Role.RETAIN).sum() / p.told(Role.RETAIN).sum()


def jensun(p: Published) -> Tensor:
    """JensUn's own code without its clamps of probabilities at 1e-9: "No idea" over and over, JSD on both sides."""

    def jsd(a: Tensor, b: Tensor) -> Tensor:
        entropies = [torch.special.entr(x).sum(-1).mean() for x in ((a + b) / 2, a, b)]
        return entropies[0] - (entropies[1] + entropies[2]) / 2

    told, kept = p.told(Role.FORGET), p.told(Role.RETAIN)
    said = torch.tensor(p.tokenizer(" No idea")["input_ids"])
    words = [said.repeat(told.shape[1])[: int(row.sum())] for row in told]
    wanted_NV = F.one_hot(torch.cat(words), p.logits[Role.FORGET].shape[-1]).double()
    forget = jsd(wanted_NV, p.logits[Role.FORGET][told].softmax(-1))
    return forget + jsd(p.start[Role.RETAIN][kept].softmax(-1), p.logits[Role.RETAIN][kept].softmax(-1))


NLL = objectives.NLL()
CASES: dict[str, tuple[Callable[[Published], Tensor], Objective, Objective | None]] = {
    "ceu": (ceu, objectives.CEU(skip_first=1), None),
    "rmu": (
        rmu,
        objectives.RMU(layer=1, coefficient=20, reduction="mean"),
        objectives.Anchor(layer=1, weight=100, reduction="mean"),
    ),
    "simnpo": (simnpo, objectives.SimNPO(beta=4.5, gamma=4.5 * 0.5, weight=0.125), NLL),
    "satimp": (satimp, objectives.SatImp(weight=0.1), NLL),
    "wga": (wga, objectives.WGA(), NLL),
    "npo": (npo, objectives.NPO(), None),
    "dpo": (dpo, objectives.DPO(), None),
    "undial": (undial, objectives.UnDIAL(), None),
    "jensun": (jensun, objectives.JensUn(), objectives.JSD()),
    "pdu": (pdu, objectives.PDU(), NLL),
}


@pytest.fixture
def make(tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., UnlearnTrainer]:
    def trainer(forget: Objective, retain: Objective | None) -> UnlearnTrainer:
        torch.set_num_threads(1)
        return UnlearnTrainer(
            tiny_model(layers=3, hidden=16).double(),
            UnlearnConfig(
                output_dir=str(tmp_path / "out"),
                per_device_train_batch_size=3,
                reference="frozen_copy",  # the caches hold float32
                disable_tqdm=True,
            ),
            objective=forget,
            retain=retain,
            forget_dataset=FORGET,
            retain_dataset=RETAIN if retain is not None else (),
            refusals=REFUSALS,
            processing_class=tiny_tokenizer,
        )

    return trainer


@pytest.mark.parametrize("name", CASES)
def test_the_published_loss(make: Callable[..., UnlearnTrainer], tiny_model: Callable[..., Any], name: str) -> None:
    literal, forget, retain = CASES[name]
    trainer = make(forget, retain)
    model: Any = trainer.model
    torch.manual_seed(0)
    with torch.no_grad():  # away from the start, or everything that compares the two is 0
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    batch = next(iter(trainer.get_train_dataloader()))
    counts = trainer._get_num_items_in_batch([batch], torch.device("cpu"))

    ours = trainer.compute_loss(model, batch, num_items_in_batch=counts)
    trained = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(ours, trained, materialize_grads=True)
    start = tiny_model(layers=3, hidden=16).double()
    theirs = literal(Published(model, start, batch, trainer.processing_class))
    expected = torch.autograd.grad(theirs, trained, materialize_grads=True)

    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    scale = max(g.abs().max() for g in expected).item()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * max(1.0, scale))


def test_rmu_trains_the_modules_that_it_names(make: Callable[..., UnlearnTrainer]) -> None:
    anchor = objectives.Anchor(layer=1)
    trainer = make(objectives.RMU(layer=1, modules=("mlp.down_proj",)), anchor)
    model: Any = trainer.model
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)]
    with pytest.raises(UserError, match=r"layer 0 has no mlp\.down\. Did you mean 'mlp\.down_proj'"):
        make(objectives.RMU(layer=1, modules=("mlp.down",)), anchor)
