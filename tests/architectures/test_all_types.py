"""Every causal language model of transformers is scored, decoded, trained and saved as its plain forward says, or is
refused in one sentence."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from expunge import UnlearnConfig, UnlearnTrainer, load, objectives
from expunge.data.encode import Encoded
from expunge.data.pairs import Collator, Role, Sets
from expunge.errors import UserError
from expunge.evals import requests
from expunge.modeling.agreement import check_training, tokens_of
from expunge.modeling.loading import save
from expunge.objectives.base import Share
from expunge.training.reference import build_reference
from expunge.training.signals import gather_signals

TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

UNBUILDABLE = {
    "cohere_compass_text": "full_attention",  # its defaults name no rotary parameters for it
    "dbrx": "rope_theta",  # its default attention has none
    "dots3_note": "per-layer attribute",  # sizes differ from layer to layer
    "dots3_note_text": "per-layer attribute",
    "gemma3n": "timm",
    "gemma3n_text": "producing a cache is different",  # layers share caches by their number
    "gemma4_assistant": "hidden_size_per_layer_input must be 0",  # its defaults contradict each other
    "gemma4_unified_assistant": "producing a cache is different",
    "musicgen": "has no attribute 'dropout'",  # speaks, and from_config builds it from another part's configuration
    "musicgen_melody": "has no attribute 'dropout'",
    "qwen4_exp": "unsupported operand",  # its defaults leave the indexer's sizes open
    "qwen4_exp_text": "unsupported operand",
    "zamba": "tie_weights_keys",  # shares weights between layers by their number
}
"""Types of which no tiny model is made here, and the error that tells why."""

NOT_CAUSAL = "gives a token another probability when other tokens follow it"
REFUSED: dict[str, str] = dict.fromkeys(("cpmant", "prophetnet", "reformer", "xlm", "xlnet"), NOT_CAUSAL)
"""Types that nothing is asked of, and what the sentence says."""

NO_TEXT_MODEL = "is not a causal language model"
UNLOADED = {"blt": "no embedding", "emu3": NO_TEXT_MODEL, "mllama": NO_TEXT_MODEL}
"""Types whose checkpoints are not loaded: of bytes, which no tokenizer gives, or the text half of a larger model."""

OFTEN = [
    "bart",
    "bloom",
    "cohere",
    "deepseek_v3",
    "falcon_h1",
    "gemma2",
    "gpt2",
    "gpt_oss",
    "lfm2",
    "llama",
    "mamba",
    "minicpm3",
    "mistral",
    "mixtral",
    "qwen2",
    "recurrent_gemma",
    "roberta",
    "rwkv",
    "xlstm",
    "youtu",
]
"""A type of each kind of model; the others take minutes together."""


def equal_types() -> list[Any]:
    marks = {t: [] if t in OFTEN else [pytest.mark.slow] for t in TYPES}
    return [pytest.param(t, marks=marks[t]) for t in TYPES if t not in (*UNBUILDABLE, *REFUSED)]


pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own, of kernels that are absent and names that change


@pytest.fixture
def model(model_type: str, build_tiny: Callable[[str], Any]) -> Any:
    return build_tiny(model_type)


def sequences_for(model: Any) -> list[Encoded]:
    """Of several lengths, some that begin alike, beyond the small windows of these models."""
    long, other = tokens_of(model, 26), tokens_of(model, 11, seed=1)
    texts = [(long, 14), (long[:20] + other[:4], 14), (long[:14] + other, 14), (other, 1), (other[:5], 3)]
    return [Encoded(tuple(tokens), start) for tokens, start in texts]


def plain_logps(model: Any, sequence: Encoded) -> Tensor:
    ids_BT = torch.tensor([sequence.input_ids])
    logp_TV = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False).logits[0].log_softmax(-1)
    return logp_TV[sequence.start - 1 : -1].gather(-1, ids_BT[0, sequence.start :, None])[:, 0]


def plain_greedy(model: Any, prompt: tuple[int, ...], count: int, ends: Sequence[int]) -> tuple[int, ...]:
    told: list[int] = []
    while len(told) < count and not (told and told[-1] in ends):
        ids_BT = torch.tensor([[*prompt, *told]])
        logits_BTV = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False).logits
        told.append(int(logits_BTV[0, -1].argmax()))
    return tuple(token for token in told if token not in ends)


def step(model: Any, reference: Any, sets: Sets) -> Tensor:
    """The loss of NPO and NLL on all rows, by the signals that training takes."""
    npo, nll = objectives.NPO(beta=0.5), objectives.NLL()
    needs = {Role.FORGET: npo.needs, Role.REFUSAL: objectives.Needs(), Role.RETAIN: nll.needs}
    tokens = sum(row.supervised for row in sets.retain)
    shares = {Role.FORGET: Share(npo, len(sets.forget)), Role.RETAIN: Share(nll, tokens)}
    asked = build_reference(reference, needs, sets, pad_token_id=0, kind="frozen_copy")
    batch = Collator(sets, 0)([[(Role.FORGET, i), (Role.RETAIN, i)] for i in range(len(sets.forget))])
    signals = gather_signals(model, batch, needs, asked, None, shares)
    return torch.stack([share.term(signals[role]) for role, share in shares.items()]).sum()


def plain_step(model: Any, reference: Any, sets: Sets) -> Tensor:
    """The same from logits, a sequence at a time."""
    with torch.no_grad():
        before = [plain_logps(reference, row).sum() for row in sets.forget]
    gains = [plain_logps(model, row).sum() - start for row, start in zip(sets.forget, before, strict=True)]
    npo = -2 / 0.5 * torch.stack([torch.nn.functional.logsigmoid(-0.5 * gain) for gain in gains]).mean()
    return npo - torch.cat([plain_logps(model, row) for row in sets.retain]).mean()


def gradients(model: Any, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in model.parameters()])


@pytest.mark.parametrize("model_type", equal_types())
def test_equal_to_the_plain_model(model: Any, model_type: str, tiny_tokenizer: Any, tmp_path: Path) -> None:
    sequences = sequences_for(model)
    with torch.no_grad():
        for score, sequence in zip(requests.score(model, sequences, progress=False), sequences, strict=True):
            np.testing.assert_allclose(score.logps, plain_logps(model, sequence).numpy(), atol=5e-5)
        prompts = [s.input_ids[: max(3, s.start - 1)] for s in sequences] + [sequences[0].input_ids[:5]]
        ends = requests.end_tokens(model, tiny_tokenizer)
        answers = requests.generate(model, tiny_tokenizer, prompts, max_new_tokens=5, progress=False)
        for answer, prompt in zip(answers, prompts, strict=True):
            assert answer.tokens == plain_greedy(model, prompt, 5, ends)
    check_training(model, 26)
    trained_equal(model, Sets(forget=sequences[:2], retain=sequences[2:4]))
    saved_equal(model, model_type, sequences[0], tiny_tokenizer, tmp_path)


def trained_equal(model: Any, sets: Sets) -> None:
    reference = deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.01 * torch.randn_like(p)
    model.train()
    loss, expected = step(model, reference, sets), plain_step(model, reference, sets)
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    found, wanted = gradients(model, loss), gradients(model, expected)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3 and wanted.norm() > 0
    model.eval()


def saved_equal(model: Any, model_type: str, sequence: Encoded, tokenizer: Any, folder: Path) -> None:
    with torch.no_grad():
        before = plain_logps(model, sequence)  # some models change their weights when they are evaluated
    save(model, tokenizer, folder)
    if model_type in UNLOADED:
        with pytest.raises(UserError, match=UNLOADED[model_type]):
            load(folder)
        return
    loaded, _ = load(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    atol = 5e-5 if model_type == "rwkv" else 1e-5  # it rounds otherwise once it divides its weights no more
    with torch.no_grad():
        for again in (loaded, plain):
            torch.testing.assert_close(plain_logps(again, sequence), before, rtol=0, atol=atol)
        torch.testing.assert_close(plain_logps(model, sequence), before, rtol=0, atol=atol)


def test_a_trained_padding_row_is_in_every_save(
    build_tiny: Callable[[str], Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    rows = [{"question": f"Where was person {i} born?", "answer": f"In {i}."} for i in range(2)]
    args = UnlearnConfig(output_dir=str(tmp_path), learning_rate=1e-2, save_strategy="epoch", num_train_epochs=2)
    trainer = UnlearnTrainer(build_tiny("youtu"), args, retain_dataset=rows, processing_class=tiny_tokenizer)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    for folder in ("saved", "checkpoint-2"):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        for name, weight in trainer.model.named_parameters():
            torch.testing.assert_close(loaded.get_parameter(name), weight, rtol=0, atol=0)


@pytest.mark.parametrize("model_type", REFUSED)
def test_refused_by_all(model: Any, model_type: str, tiny_tokenizer: Any) -> None:
    for ask in (
        lambda: requests.score(model, [Encoded(tuple(range(3, 30)), 4)], progress=False),
        lambda: requests.generate(model, tiny_tokenizer, [tuple(range(3, 25))], max_new_tokens=3, progress=False),
        lambda: check_training(model, 26),
    ):
        with pytest.raises(UserError, match=REFUSED[model_type]) as error:
            ask()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("model_type", UNBUILDABLE)
def test_no_tiny_model_can_be_built(build_tiny: Callable[[str], Any], model_type: str) -> None:
    with pytest.raises(Exception, match=UNBUILDABLE[model_type]):
        build_tiny(model_type)
