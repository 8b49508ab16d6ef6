"""The starting model's numbers for the tokens of a batch, computed in one of four equivalent ways.

| kind            | how                                               | costs                                    |
|-----------------|---------------------------------------------------|------------------------------------------|
| `cached_logps`  | log-probabilities of every row, once              | a number a token, on disk                |
| `cached_hidden` | last hidden states where needed, once; z⁰ = W⁰h⁰  | D numbers a token, on disk; W⁰ if it trains |
| `adapter_off`   | a forward with the LoRA adapter switched off      | a forward a step                         |
| `frozen_copy`   | a forward of a copy of the whole model            | a second model, a forward a step         |

`cached_logps` can't give distributions; the other three can, and exactly so.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from expunge.data.encode import Encoded
from expunge.data.pairs import Collator, Role, Sets
from expunge.errors import UserError, did_you_mean
from expunge.modeling.adapter import without_adapter
from expunge.modeling.agreement import ways_of
from expunge.modeling.causal import CausalLM
from expunge.modeling.forward import forward_supervised
from expunge.modeling.logprobs import Head, token_logps
from expunge.objectives.base import Needs
from expunge.system import ranks
from expunge.training import refcache
from expunge.training.layout import LaidOut, Layout, slices_of

if TYPE_CHECKING:
    from peft import PeftModel

ReferenceKind = Literal["auto", "cached_logps", "cached_hidden", "adapter_off", "frozen_copy"]

CACHE_BYTES = 4 * 2**30
"""Above this many bytes of hidden states the automatic choice runs the reference live instead."""


@dataclass
class ReferenceSignals:
    """A reference's numbers for the N supervised tokens of a role; only those asked for are set."""

    logp_N: Tensor | None = None
    hidden_ND: Tensor | None = None
    layer_ND: Tensor | None = None

    def parts(self) -> list[tuple[str, Tensor]]:
        return [(name, x) for name, x in vars(self).items() if x is not None]


class Reference(ABC):
    """Gives the starting model's signals for a batch, by role. `head` is its output head, for distributions."""

    kind: ReferenceKind
    head: Head

    @abstractmethod
    def __call__(self, batch: Mapping[str, Any]) -> dict[Role, ReferenceSignals]: ...

    def head_for(self, role: Role) -> Head:
        """The head that belongs to this role's hidden states."""
        return self.head


class LiveReference(Reference):
    """Runs the starting model on the rows that need it: `model` inside `context` (adapter off), or a frozen copy."""

    def __init__(
        self,
        model: nn.Module,
        needs: Mapping[Role, Needs],
        kind: ReferenceKind,
        context: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.model, self.needs, self.kind, self.context = model, needs, kind, context
        ways = ways_of(model)
        self.dense = ways.dense
        self.head = Head.identity(ways.vocab_size) if ways.dense else Head.at_start(model)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> dict[Role, ReferenceSignals]:
        roles = [role for role in Role if self.needs[role].reference]
        whole = Layout.of(batch)
        layout = whole.only(roles)
        if not layout.rows:
            return {}
        ids_BT, mask_BT = (
            torch.cat([batch[name][whole.sequences[role]] for role in layout.sequences])
            for name in ("input_ids", "attention_mask")
        )

        def at_head(hidden_ND: Tensor, head: Head) -> dict[Role, ReferenceSignals]:
            read: dict[Role, ReferenceSignals] = {}
            for role, tokens in layout.tokens.items():
                needs = self.needs[role]
                logp_N = token_logps(hidden_ND[tokens], layout.target_N[tokens], head) if needs.reference_logp else None
                read[role] = ReferenceSignals(logp_N, hidden_ND[tokens] if needs.divergence else None)
            return read

        training = self.model.training
        self.model.eval()
        with self.context():
            by_role, layer_ND = forward_supervised(
                self.model,
                ids_BT,
                mask_BT,
                layout.predicts,
                at_head=at_head if any(n.reference_logp or n.divergence for n in self.needs.values()) else None,
                layer=next((n.layer for n in self.needs.values() if n.reference_layer), None),
                dense=self.dense,
            )
        self.model.train(training)
        signals = by_role or {role: ReferenceSignals() for role in layout.tokens}
        for role, tokens in layout.tokens.items():
            if self.needs[role].reference_layer and layer_ND is not None:
                signals[role].layer_ND = layer_ND[tokens]
        return signals


@dataclass(frozen=True)
class _RowBatch:
    """Rows of one role that are asked about at once, the tokens of each, and where in the role's tables they begin."""

    role: Role
    rows: list[int]
    lengths: list[int]
    start: int


class CachedReference(Reference):
    """Looks up what a live reference said, before training began, of every row that training will see.

    It is kept on disk (`refcache`), where other runs with the same model and rows find it. Of several ranks each asks
    about a part of the rows.
    """

    def __init__(
        self,
        live: LiveReference,
        sets: Sets,
        pad_token_id: int,
        kind: ReferenceKind,
        batch_size: int,
        retain_rows: Collection[int] | None,
    ) -> None:
        self.kind, self.head = kind, live.head
        device = next(live.model.parameters()).device
        collate = LaidOut(Collator(sets, pad_token_id))
        lots: list[_RowBatch] = []
        leads: dict[Role, int] = {}  # the first lot of each role
        for role in (role for role in Role if live.needs[role].reference and sets.of(role)):
            rows = range(len(sets.of(role))) if role != Role.RETAIN or retain_rows is None else sorted(retain_rows)
            leads[role] = len(lots)
            lots += _lots(role, sets.of(role), rows, batch_size)
        tokens = {lot.role: lot.start + sum(lot.lengths) for lot in lots}

        def ask(i: int) -> dict[str, Tensor]:
            batch: dict[str, Any] = {
                k: v.to(device) for k, v in collate([[(lots[i].role, row)] for row in lots[i].rows]).items()
            }
            return {_table(lots[i].role, name): x for name, x in live(batch)[lots[i].role].parts()}

        known: dict[int, dict[str, Tensor]] = {}

        def identify() -> tuple[str, dict[str, refcache.TableShape]]:
            """The tables' key and shapes. Weights and rows decide on the key, and the first answers for each role do:
            they tell models apart that differ in settings, precision or versions alone."""
            known.update({i: ask(i) for i in leads.values()})
            shapes = {name: (tokens[r], x) for r, i in leads.items() for name, x in known[i].items()}
            asked = [(lot.role, [sets.of(lot.role)[row] for row in lot.rows]) for lot in lots]
            said = [x for _, x in shapes.values()]
            key = refcache.digest(refcache.FORMAT, refcache.fingerprint(live.model), asked, *shapes, *said)
            return key, {name: ((count, *x.shape[1:]), x.dtype) for name, (count, x) in shapes.items()}

        def fill(write: refcache.Write) -> None:
            mine = [*known, *ranks.share(i for i in range(len(lots)) if i not in leads.values())]
            for i in tqdm(mine, desc="reference", leave=False):
                for name, x in (known.get(i) or ask(i)).items():
                    write(name, lots[i].start, x)

        tables = refcache.cached_tables(*ranks.broadcast(identify), fill) if lots else {}
        names = [field.name for field in fields(ReferenceSignals)]
        self.rows: dict[tuple[Role, int], ReferenceSignals] = {}
        for lot in lots:
            of_role = {name: tables[table] for name in names if (table := _table(lot.role, name)) in tables}
            for row, at in zip(lot.rows, slices_of(lot.lengths, lot.start), strict=True):
                self.rows[lot.role, row] = ReferenceSignals(**{name: x[at] for name, x in of_role.items()})

    def __call__(self, batch: Mapping[str, Any]) -> dict[Role, ReferenceSignals]:
        device = batch["labels"].device
        rows_of: dict[Role, list[ReferenceSignals]] = {}
        for pair in Layout.of(batch).rows:
            if pair in self.rows:
                rows_of.setdefault(pair[0], []).append(self.rows[pair])
        return {
            role: ReferenceSignals(
                **{name: _moved(torch.cat([getattr(r, name) for r in rows]), device) for name, _ in rows[0].parts()}
            )
            for role, rows in rows_of.items()
        }


def _moved(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`, for which the host does not wait."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


class TaughtReference(Reference):
    """A teacher says what to answer to the rows to forget, the starting model what to keep."""

    def __init__(self, teacher: Reference, start: Reference) -> None:
        self.teacher, self.start = teacher, start
        self.kind, self.head = teacher.kind, teacher.head

    def __call__(self, batch: Mapping[str, Any]) -> dict[Role, ReferenceSignals]:
        return self.teacher(batch) | self.start(batch)

    def head_for(self, role: Role) -> Head:
        return (self.start if role == Role.RETAIN else self.teacher).head


def _lots(role: Role, encoded: Sequence[Encoded], rows: Iterable[int], size: int) -> list[_RowBatch]:
    """The rows in lots of `size`, longest first."""
    lots: list[_RowBatch] = []
    order, start = sorted(rows, key=lambda row: -len(encoded[row])), 0
    for i in range(0, len(order), size):
        lengths = [encoded[row].supervised for row in order[i : i + size]]
        lots.append(_RowBatch(role, order[i : i + size], lengths, start))
        start += sum(lengths)
    return lots


def _table(role: Role, name: str) -> str:
    return f"{role.name.lower()}.{name}"


def build_reference(
    model: nn.Module,
    needs: Mapping[Role, Needs],
    sets: Sets,
    *,
    pad_token_id: int,
    kind: ReferenceKind = "auto",
    batch_size: int = 16,
    teacher: nn.Module | None = None,
    retain_rows: Collection[int] | None = None,
) -> Reference:
    """The reference for what each role `needs`, of `model` as it is now, which must be the starting model.

    A `teacher`, which nobody trains, speaks in its place for all roles but retain. `retain_rows` are those that will be
    asked about; all without it.

    `auto` takes `cached_logps` when log-probabilities are enough, else `cached_hidden` while the cache fits
    `CACHE_BYTES`, else `adapter_off` for LoRA and `frozen_copy` for full fine-tuning.
    Raises `UserError` for a kind that can't give what is needed.
    """
    if teacher is not None:
        others: dict[str, Any] = {"pad_token_id": pad_token_id, "batch_size": batch_size}
        forget = {**needs, Role.RETAIN: Needs()}
        retain = {**dict.fromkeys(Role, Needs()), Role.RETAIN: needs[Role.RETAIN]}
        return TaughtReference(
            # A teacher has no adapter of ours to switch off.
            build_reference(
                teacher.requires_grad_(False), forget, sets, **others, kind="auto" if kind == "adapter_off" else kind
            ),
            build_reference(model, retain, sets, **others, kind=kind, retain_rows=retain_rows),
        )
    base = ranks.inside(model)
    has_adapter = hasattr(base, "disable_adapter")
    check_kind(kind, needs[Role.FORGET] | needs[Role.RETAIN], has_adapter=has_adapter)
    trained = has_adapter and not _is_its_base(base)
    head = base.get_output_embeddings()
    if trained and (hasattr(head, "base_layer") or hasattr(head, "original_module")):
        raise UserError(
            "model: its output head has an adapter that has been trained, so what it says at the start can't be kept; "
            "give model.merge_and_unload()."
        )
    if trained and kind == "adapter_off":
        raise UserError(
            "train.reference: adapter_off would compare with the base, and this model starts from an adapter that has "
            "been trained; use cached_logps, cached_hidden or frozen_copy, or give model.merge_and_unload()."
        )
    if kind == "auto":
        ways = ways_of(model)
        at_head = ways.vocab_size if ways.dense else None
        kind = choose_kind(base, needs, sets, has_adapter and not trained, at_head=at_head)
    if kind == "adapter_off":
        return LiveReference(model, needs, kind, context=partial(without_adapter, base))
    if kind == "frozen_copy":
        trains = any(p.requires_grad for p in base.parameters())
        return LiveReference(deepcopy(base).requires_grad_(False) if trains else base, needs, kind)
    live = LiveReference(model, needs, kind)
    return CachedReference(live, sets, pad_token_id, kind, batch_size, retain_rows)


@torch.no_grad()
def _is_its_base(adapted: "PeftModel") -> bool:
    """Whether a model says the same with its adapter as without, as it does before the adapter is trained."""
    ids_BT = torch.arange(
        min(16, adapted.config.get_text_config().vocab_size), device=next(adapted.parameters()).device
    )
    training = adapted.training
    adapted.eval()
    with_it = adapted(input_ids=ids_BT[None], use_cache=False).logits
    with without_adapter(adapted):
        without = adapted(input_ids=ids_BT[None], use_cache=False).logits
    adapted.train(training)
    return torch.allclose(with_it, without, rtol=8 * torch.finfo(with_it.dtype).eps, atol=1e-6)


def check_kind(kind: str, needs: Needs, *, has_adapter: bool) -> None:
    """Raise `UserError` for a kind of reference that can't give what `needs` asks for."""
    if kind not in get_args(ReferenceKind):
        raise UserError(
            f"train.reference: {kind!r} is not a kind of reference.{did_you_mean(kind, get_args(ReferenceKind))} "
            f"Known: {', '.join(get_args(ReferenceKind))}."
        )
    if kind == "cached_logps" and (needs.divergence or needs.reference_layer):
        raise UserError(
            "train.reference: cached_logps holds one number a token, but the chosen objectives compare whole "
            "distributions or hidden states; use cached_hidden, adapter_off or frozen_copy."
        )
    if kind == "adapter_off" and not has_adapter:
        raise UserError(
            "train.reference: adapter_off needs a LoRA adapter, and this is full fine-tuning; set model.lora, "
            "or use cached_hidden or frozen_copy."
        )


def choose_kind(
    base: CausalLM, needs: Mapping[Role, Needs], sets: Sets, has_adapter: bool, *, at_head: int | None = None
) -> ReferenceKind:
    """The kind that `auto` takes, as `build_reference` says; `at_head` numbers a token stand for a distribution."""
    if not any(n.divergence or n.reference_layer for n in needs.values()):
        return "cached_logps"
    width = base.config.get_text_config().hidden_size
    # A difference has several hidden states a token, concatenated.
    at_head = at_head or sum(getattr(base.get_output_embeddings(), "widths", [width]))
    numbers = 0
    for role, need in needs.items():
        tokens = sum(e.supervised for e in sets.of(role))
        numbers += tokens * (at_head * bool(need.divergence) + width * need.reference_layer + need.reference_logp)
    if 4 * numbers <= CACHE_BYTES:
        return "cached_hidden"
    return "adapter_off" if has_adapter else "frozen_copy"
