"""Peak memory of a training in named parts, known before anything is loaded.

A model without weights is asked what autograd keeps of a forward and what the optimizer holds, by torch's fake tensors,
which know shapes and nothing else. Only what the head and the reference add is counted by hand.

On CUDA the sum stands beside the peak of allocated memory. On the CPU the peak of a process holds the interpreter and
its libraries as well, some hundred MiB: what it had resident before the model was loaded is taken off first. And there
an allocator gives little back: what the forward kept counts when the gradients are there, too.
"""

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Trainer

from expunge.data.pairs import Item, PairedDataset, PairSampler, Role, Sets
from expunge.modeling.causal import CausalLM
from expunge.modeling.forward import forward_supervised
from expunge.modeling.logprobs import BLOCK, CHUNK, Head
from expunge.objectives.base import Needs
from expunge.training.arguments import UnlearnConfig
from expunge.training.checkpointing import checkpoint_activations
from expunge.training.reference import choose_kind

MIB = 2**20


@dataclass(frozen=True)
class Memory:
    """MiB of each part at the moment when their sum is largest: in the head, or when the last gradient is there.

    weights      of the model that trains, frozen ones too
    gradients    all of them in the end; in the head only its own
    optimizer    its state
    activations  what autograd keeps of the forward; in the end, on CUDA, one layer's
    logits       of one chunk of tokens, with what is computed from them
    reference    a cache, or a second model, and the starting model's head
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    reference: float

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class BatchSize:
    """The input of one forward: sequences, positions of each with padding, and supervised tokens by role."""

    sequences: int
    positions: int
    supervised: Mapping[Role, int]


def largest_batch(sets: Sets, needs: Mapping[Role, Needs], args: UnlearnConfig) -> BatchSize:
    """The batch with most positions that training will see, by the sampler's own order."""
    items = PairedDataset(sets, refusals=needs[Role.FORGET].refusal)
    sampler, size = _sampler(sets, args), args.per_device_train_batch_size
    batches: list[BatchSize] = []
    for epoch in range(_epochs(args, sampler.rows)):
        sampler.set_epoch(epoch)
        order = list(sampler)
        for i in range(0, len(order), size):
            batches.append(_batch([items[pair] for pair in order[i : i + size]], sets))
    return max(batches, key=lambda b: (b.sequences * b.positions, sum(b.supervised.values())))


def peak(
    model: CausalLM, batch: BatchSize, needs: Mapping[Role, Needs], args: UnlearnConfig, reference: float, *,
    dense: float | None = None, gives_back: bool | None = None,
) -> Memory:  # fmt: skip
    """The parts for a `model` on the meta device that is to be trained; it can't be used for anything else afterwards.

    `reference` is in bytes, as `reference_bytes` counts it. `dense` is for losses of whole logits: how many rows of V
    numbers they hold. `gives_back` says of the allocator what is otherwise known from the device.
    """
    head: Any = model.get_output_embeddings()
    layers = model.config.get_text_config().num_hidden_layers
    asked = [need for need in needs.values() if need.head]
    passes = any(n.scores for n in asked) + sum(n.divergence is not None for n in asked)
    once = all(need.number for need in asked)
    passes = min(passes, 1) if once else passes
    gradients = _bytes(p for p in model.parameters() if p.requires_grad)
    of_head = _bytes(p for p in head.parameters() if p.requires_grad)
    early = passes * of_head if dense is None else 0.0
    if args.gradient_accumulation_steps > 1:
        early += gradients
    vocabulary, whole = head.weight.shape[0], Head.of(model)
    by_blocks = not of_head and whole.linear is not None and whole.softcap is None and _device(args).type == "cpu"
    rows = dense
    if rows is None:
        rows = _at_head(batch, needs, vocabulary, once=once or not of_head, by_blocks=by_blocks)
    weights, logits = _bytes(tensors(model)), rows * vocabulary * 4
    layer = next((n.layer for n in needs.values() if n.layer is not None), None)
    with FakeTensorMode(), torch.device(_device(args)):
        _fake(model)
        kept = _kept(model, batch, args, layer=layer, head=bool(passes))
        one = kept / layers
        if args.activation_checkpointing:
            checkpoint_activations(model, args.activation_checkpointing_kwargs or {"use_reentrant": False})
            kept = one + _kept(model, batch, args, layer=layer, head=bool(passes))
        optimizer = _optimizer(model, args)
    if args.sam_rho is not None:  # the weights as they were, while they stand elsewhere
        weights += gradients
    common = {"weights": weights, "optimizer": optimizer, "reference": reference}
    in_head = {"gradients": early, "activations": kept, "logits": logits}
    at_end = {"gradients": gradients, "activations": one, "logits": 0}
    if not (_device(args).type != "cpu" if gives_back is None else gives_back):
        at_end = {"gradients": gradients, "activations": kept, "logits": logits}
    moments = [Memory(**{name: x / MIB for name, x in (common | need).items()}) for need in (in_head, at_end)]
    return max(moments, key=lambda m: m.total)


def reference_bytes(
    model: CausalLM, needs: Mapping[Role, Needs], sets: Sets, args: UnlearnConfig, *, teacher: nn.Module | None = None
) -> float:
    """Memory of the reference of `build_reference` beside the model, its cache included on a CPU."""
    if not any(need.reference for need in needs.values()):
        return 0.0
    adapter = hasattr(model, "disable_adapter")
    kind = args.reference if args.reference != "auto" else choose_kind(model, needs, sets, adapter)
    size = _bytes(tensors(teacher)) if teacher is not None else 0.0
    if kind == "adapter_off":
        return size
    if kind == "frozen_copy":
        return size + _bytes(tensors(model))
    head: Any = model.get_output_embeddings()
    size += _bytes(p for p in head.parameters() if p.requires_grad)
    if _device(args).type != "cpu":  # where the cache stays
        return size
    sampler = _sampler(sets, args)
    seen: dict[Role, Collection[int]] = {Role.RETAIN: sampler.retain_rows(_epochs(args, sampler.rows))}
    width, at_head = head.weight.shape[-1], sum(getattr(head, "widths", [head.weight.shape[-1]]))
    for role, need in needs.items():
        rows = [sets.of(role)[row] for row in seen.get(role, range(len(sets.of(role))))]
        numbers = at_head * (need.divergence is not None) + width * need.reference_layer + need.reference_logp
        size += 4 * numbers * sum(row.supervised for row in rows)
    return size


def tensors(model: nn.Module) -> Iterable[Tensor]:
    """Parameters and buffers, tied ones once."""
    return {id(t): t for t in (*model.parameters(), *model.buffers())}.values()


def _fake(model: nn.Module) -> None:
    """Replace every tensor of the model by a fake one of its shape, shared ones by one."""
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for held in tables:
            for name, t in held.items():
                if t is not None and id(t) not in made:
                    x = torch.empty(t.shape, dtype=t.dtype)
                    made[id(t)] = t, nn.Parameter(x, t.requires_grad) if isinstance(t, nn.Parameter) else x
                if t is not None:
                    held[name] = made[id(t)][1]


def _device(args: UnlearnConfig) -> torch.device:
    accelerator = None if args.use_cpu else torch.accelerator.current_accelerator()
    return accelerator or torch.device("cpu")


def _bytes(held: Iterable[Tensor]) -> float:
    return sum(t.nbytes for t in held)


def _sampler(sets: Sets, args: UnlearnConfig) -> PairSampler:
    """The order of training, of one process."""
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return PairSampler(sets, batch_size=step, seed=args.order_seed)


def _epochs(args: UnlearnConfig, rows: int) -> int:
    if args.max_steps <= 0:
        return math.ceil(args.num_train_epochs)
    return math.ceil(args.max_steps * args.per_device_train_batch_size * args.gradient_accumulation_steps / rows)


def _batch(items: Sequence[Item], sets: Sets) -> BatchSize:
    rows = [(role, sets.of(role)[row]) for item in items for role, row in item]
    supervised = dict.fromkeys(Role, 0)
    for role, row in rows:
        supervised[role] += row.supervised
    return BatchSize(len(rows), max(len(row) for _, row in rows), supervised)


def _at_head(batch: BatchSize, needs: Mapping[Role, Needs], vocabulary: int, *, once: bool, by_blocks: bool) -> float:
    """Rows of V numbers held at once: logits, which become their gradients where the head is gone through once, or a
    block of the logits of all tokens; for a divergence the reference's, too."""
    counts = batch.supervised
    plain = sum(counts[role] * len(need.scores) for role, need in needs.items())
    held = {
        role: 4 if d.kind == "jensen_shannon" else 3 for role, n in needs.items() if (d := n.divergence) is not None
    }
    of_plain = plain * min(1.0, BLOCK / vocabulary) if by_blocks else (1 if once else 2) * min(CHUNK, plain)
    return max(of_plain, *(times * min(CHUNK, counts[role]) for role, times in held.items()), 0.0)


def _kept(model: CausalLM, batch: BatchSize, args: UnlearnConfig, *, layer: int | None, head: bool) -> float:
    """Bytes that autograd keeps of one forward up to the head, parameters not counted.

    Where the way through the model depends on values, which fake tensors have not (mixtures of experts), what a dense
    Llama of the same widths would keep: for each token 10 vectors of its width and 4 of its MLP's in each layer.
    """
    complaints = logging.getLogger(FakeTensorMode.__module__)
    known = {t.untyped_storage()._cdata for t in tensors(model)}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(x: Tensor) -> Tensor:
        kept.setdefault(x.untyped_storage()._cdata, x.untyped_storage())
        return x

    ids_BT = torch.ones(batch.sequences, batch.positions, dtype=torch.long)
    token_N = torch.zeros(sum(batch.supervised.values()), dtype=torch.long)
    low = torch.bfloat16 if args.bf16 else torch.float16
    model.train()
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
        torch.autocast(_device(args).type, dtype=low, enabled=args.bf16 or args.fp16),
    ):
        try:
            complaints.disabled = True
            forward_supervised(
                model, ids_BT, ids_BT, (token_N, token_N), at_head=(lambda h_ND, _: h_ND) if head else None, layer=layer
            )
        except RuntimeError:
            text = model.config.get_text_config()
            numbers = 10 * text.hidden_size + 4 * getattr(text, "intermediate_size", 4 * text.hidden_size)
            return float(text.num_hidden_layers * ids_BT.numel() * numbers * next(model.parameters()).itemsize)
        finally:
            complaints.disabled = False
    return sum(storage.nbytes() for key, storage in kept.items() if key not in known)


def _optimizer(model: nn.Module, args: UnlearnConfig) -> float:
    """Bytes of the optimizer's state after a step on gradients without values; by its name where it has few bits.

    Those of torchao and bitsandbytes look at values; they hold a scale for every 256 numbers.
    """
    name = str(getattr(args.optim, "value", args.optim))
    for bits in (8, 4):
        if f"{bits}bit" in name:
            states = 1 if "lion" in name else 2
            return states * (bits / 8 + 4 / 256) * sum(p.numel() for p in model.parameters() if p.requires_grad)
    trained = [p for p in model.parameters() if p.requires_grad]
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
    for p in trained:
        p.grad = torch.empty_like(p)
    optimizer = kind(trained, **options)
    optimizer.step()
    return _bytes(x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor))
