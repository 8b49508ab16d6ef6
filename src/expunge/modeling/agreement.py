"""Which ways to a model's numbers agree with its own plain forward, measured on a few tokens and remembered.

The plain way is the model's own logits, one sequence at a time. The ways that only an evaluation takes are measured
beside them, by the same comparison.

Shapes: B sequences, T positions, N of them laid end to end, D hidden size, V vocabulary.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from expunge.errors import UserError
from expunge.modeling.adapter import under_adapter
from expunge.modeling.forward import forward_supervised
from expunge.modeling.logprobs import Head
from expunge.system import ranks

log = logging.getLogger(__name__)

NAN = (
    "the model's log-probabilities are NaN: a weight is NaN, or training has diverged; give another checkpoint, or "
    "lower the learning rate."
)
"""The sentence for a model that gives no numbers."""

R = TypeVar("R")

PROBE = 12
"""Tokens of the longest sequence that is read, where nothing in the model depends on how long a sequence is."""

LOUD = 10.0
"""Standard deviation of the logits that a head is tried with: soft-caps and their like act on large logits alone."""


@dataclass(frozen=True)
class Ways:
    """Which ways hold for a model.

    dense       its head is not known, so it must be asked for its own logits, [B, T, V]
    padded      sequences of several lengths may be one batch, padded on the right
    vocab_size  V of its logits
    """

    dense: bool
    padded: bool
    vocab_size: int


def ways_of(model: nn.Module, longest: int = 0) -> Ways:
    """The ways that hold for sequences of up to `longest` tokens.

    Raises `UserError` for a model that is no causal language model, and for a difference of models with a head that is
    not known.
    """
    for part in getattr(ranks.inside(model).get_output_embeddings(), "models", ()):
        if ways_of(part).dense:
            raise UserError(
                f"model: {name_of(part)} does something to its logits that expunge does not know, so no difference of "
                f"two models can be made of it; use a single-model method."
            )
    return remembered(model, ("scores", probe_length(model, longest)), lambda length: _measure(model, length))


def check_training(model: nn.Module, longest: int) -> None:
    """Raise `UserError` for a model that can't be trained on batches of sequences of up to `longest` tokens."""
    if not (ways_of(model).padded and ways_of(model, longest).padded):
        raise UserError(
            f"model: {name_of(model)} gives a sequence other log-probabilities in a padded batch than alone, so it can "
            f"be evaluated here but not trained; use another model, or sequences of one length."
        )


# -- measuring -----------------------------------------------------------------------------------------------------

_measured: WeakKeyDictionary[nn.Module, dict[Any, Any]] = WeakKeyDictionary()


def remembered(model: nn.Module, key: tuple[str, int], measure: Callable[[int], R]) -> R:
    """Return what `measure` gives for probes of length `key[1]`, measured once for each model in its present form."""
    base = ranks.inside(model)
    weight, config = next(base.parameters()), base.config.get_text_config()
    form = (config._attn_implementation, config.vocab_size, weight.dtype, weight.device.type)
    known = _measured.setdefault(base, {})
    if (key, form) not in known:
        with undisturbed(base):
            known[key, form] = measure(key[1])
    return known[key, form]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without gradients or autocast; modes and random numbers are put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    cpu = device.type == "cpu"
    try:
        model.eval()
        with (
            torch.random.fork_rng([] if cpu else [device], device_type="cuda" if cpu else device.type),
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _measure(model: nn.Module, length: int) -> Ways:
    first, second = probes(model, length)
    plain = [plain_logits(model, tokens) for tokens in (first, second)]
    alike = common(first, second)
    if not agree(model, lambda: plain[1][:alike], plain[0][:alike]):
        raise UserError(
            f"model: {name_of(model)} gives a token another probability when other tokens follow it, so nothing can be "
            f"scored; use a causal language model (a BERT is one with is_decoder: true in its config.json)."
        )
    width, device = len(first), plain[0].device
    ids_BT, mask_BT = torch.zeros(2, 2, width, dtype=torch.long, device=device)
    for b, tokens in enumerate((first, second)):
        ids_BT[b, : len(tokens)] = torch.tensor(tokens)
        mask_BT[b, : len(tokens)] = 1

    def read(rows: int, *, dense: bool) -> Tensor:
        ids, mask = ids_BT[:rows], mask_BT[:rows]
        numbers, _ = forward_supervised(
            model, ids, mask, mask.bool(), at_head=lambda hidden_ND, head: head.logits(hidden_ND), dense=dense
        )
        assert numbers is not None
        return numbers

    both, vocab_size = torch.cat(plain), plain[0].shape[-1]
    knows_head = agree(model, lambda: _at_loud_head(model, first), None, ulps=4)
    for dense in (False, True) if knows_head else (True,):
        if agree(model, lambda dense=dense: read(2, dense=dense), both):
            return _logged(model, Ways(dense, padded=True, vocab_size=vocab_size))
        if dense or agree(model, lambda: read(1, dense=False), plain[0]):
            return _logged(model, Ways(dense, padded=False, vocab_size=vocab_size))
    raise AssertionError("the dense way was not tried")


def _logged(model: nn.Module, ways: Ways) -> Ways:
    if ways.dense:
        say(model, "does something to its logits that expunge does not know: the model makes them all itself")
    if not ways.padded:
        say(model, "gives other numbers in padded batches: sequences are read one at a time")
    return ways


def say(model: nn.Module, what: str) -> None:
    """One line of the log, by the first rank alone."""
    if ranks.first():
        log.info("%s %s", name_of(model), what)


def _at_loud_head(model: nn.Module, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits by `Head` and by the model itself, of the same hidden states, which are scaled so that they are large."""
    base = ranks.inside(model)
    logits: list[Tensor] = []

    def louder(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        head = Head.of(base)
        hidden_BTD = inputs[0] * (LOUD / head.forward(inputs[0]).float().std()).to(inputs[0].dtype)
        logits.append(head.logits(hidden_BTD[0]))
        return (hidden_BTD, *inputs[1:])

    hook = base.get_output_embeddings().register_forward_pre_hook(louder)
    try:
        own_NV = plain_logits(model, tokens)
    finally:
        hook.remove()
    (by_head_NV,) = logits
    return by_head_NV, own_NV


# -- comparing -----------------------------------------------------------------------------------------------------


def plain_logits(model: nn.Module, tokens: Sequence[int]) -> Tensor:
    """The model's own logits of one sequence, [T, V].

    Raises `UserError` for a model that can't read it.
    """
    ids_BT = torch.tensor([tokens], device=next(model.parameters()).device)
    try:
        logits_BTV = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False).logits
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "").rstrip(".")
        raise UserError(
            f"model: {name_of(model)} can't read a plain text ({type(error).__name__}: {reason}); use a causal "
            f"language model that needs nothing but tokens."
        ) from error
    assert logits_BTV.shape[:2] == ids_BT.shape, logits_BTV.shape
    if logits_BTV.isnan().any():
        raise UserError(NAN)
    return logits_BTV[0]


def agree(
    model: nn.Module, find: Callable[[], Tensor | tuple[Tensor, Tensor]], plain_NV: Tensor | None, *, ulps: int = 16
) -> bool:
    """Whether `find` gives these logits, or two that are the same; it does not where it raises an error.

    "The same" is up to `ulps` units in the last place of the model's dtype, and of what the model itself makes of one
    sequence beside another of its length. Ranks that hold parts of a model come to one verdict.
    """
    try:
        measured = find()
        other_NV, plain_NV = measured if isinstance(measured, tuple) else (measured, plain_NV)
        assert plain_NV is not None
        same = distance(other_NV, plain_NV) <= max(ulps * precision(model), 4 * rounding(model))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        log.debug("%s: %s", name_of(model), error)
        same = False
    return all(ranks.merged({ranks.rank(): same}).values()) if ranks.is_sharded(model) else same


def distance(other_NV: Tensor, plain_NV: Tensor) -> float:
    """How far logits are from the plain ones: the root mean square over a token's V log-probabilities where it is
    largest, in units of their spread over the vocabulary."""
    if other_NV.shape != plain_NV.shape:
        return float("inf")
    other_NV, plain_NV = (z_NV.to("cpu", torch.float64).log_softmax(-1) for z_NV in (other_NV, plain_NV))
    ruled_out_NV = plain_NV < -1e4  # some models give such logits to tokens that may not come
    if not torch.equal(ruled_out_NV, other_NV < -1e4):
        return float("inf")
    other_NV, plain_NV = (z_NV.masked_fill(ruled_out_NV, 0.0) for z_NV in (other_NV, plain_NV))
    error = (other_NV - plain_NV).square().mean(-1).sqrt().max()
    return float(error / plain_NV.std(-1).square().mean().sqrt()) if error else 0.0


def precision(model: nn.Module) -> float:
    """The unit in the last place of the coarsest dtype that the model computes in, at least 2e-6."""
    held = {p.dtype for p in model.parameters() if p.itemsize > 1 or not p.is_floating_point()}
    dtypes = {dtype if dtype.is_floating_point else torch.bfloat16 for dtype in held}  # integers are quantized weights
    return max(2e-6, *(torch.finfo(dtype).eps for dtype in dtypes))


def rounding(model: nn.Module) -> float:
    """How far apart one sequence is, alone and beside itself, in a coarse dtype; there an expert may be another."""

    def measure(length: int) -> float:
        tokens = tokens_of(model, length)
        ids_BT = torch.tensor([tokens, tokens], device=next(model.parameters()).device)
        logits_BTV = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False).logits
        return distance(logits_BTV[0], plain_logits(model, tokens))

    return remembered(model, ("rounding", PROBE), measure) if precision(model) > 1e-4 else 0.0


# -- probes --------------------------------------------------------------------------------------------------------

LIMITS = re.compile("window|chunk|block|top_?k|local|attention_len")
"""In names of settings: lengths from which on attention may leave tokens out."""


def probe_length(model: nn.Module, longest: int) -> int:
    """Tokens of the longest probe for sequences of up to `longest`: few, where the model treats all of these alike."""
    config = ranks.inside(model).config.get_text_config()
    limits = [n for name, n in vars(config).items() if LIMITS.search(name) and isinstance(n, int) and n > 0]
    rope = getattr(config, "rope_parameters", None) or {}
    limits += [n for name, n in rope.items() if name == "original_max_position_embeddings"]
    if longest <= PROBE or all(n >= longest for n in limits):
        return PROBE
    context = getattr(config, "max_position_embeddings", None) or longest
    return max(PROBE, min(context - 1, 1 << (longest - 1).bit_length()))


def probes(model: nn.Module, length: int) -> tuple[list[int], list[int]]:
    """A sequence of `length` tokens, and a shorter one that begins with its first half."""
    first = tokens_of(model, length)
    return first, first[: length // 2] + tokens_of(model, length // 4, seed=1)


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """With how many tokens two sequences begin alike."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def tokens_of(model: nn.Module, length: int, seed: int = 0) -> list[int]:
    """Random tokens that mean nothing special to the model, the same at every call."""
    base = ranks.inside(model)
    text = base.config.get_text_config()
    named = [
        value
        for config in (base.config, text)
        for name, value in vars(config).items()
        if name.endswith(("token_id", "token_index"))
    ]
    special = {token for value in named for token in (value if isinstance(value, list) else [value])}
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(text.vocab_size, (4 * length + 64,), generator=generator).tolist()
    return [token for token in drawn if token not in special][:length]


def name_of(model: nn.Module) -> str:
    """The name of its class, under an adapter that of what is adapted."""
    return type(under_adapter(ranks.inside(model))).__name__
