"""Checks before training, the arguments of a trainer in Python, and the encoded sets it begins with."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import IntervalStrategy

from expunge.data.benchmark import Row
from expunge.data.checks import check_disjoint, check_not_empty
from expunge.data.dialects import PREFERRED
from expunge.data.encode import encode_rows, refused
from expunge.data.formats import keeping, normalise, read_rows
from expunge.data.pairs import Sets
from expunge.errors import UserError, did_you_mean
from expunge.modeling.causal import CausalLM
from expunge.objectives import FORGET, METHODS, NLL, RETAIN, Objective, objective_class, split_method
from expunge.objectives.base import Way
from expunge.objectives.trial import check_loss
from expunge.system.imports import is_ours
from expunge.training.arguments import UnlearnConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase
log = logging.getLogger(__name__)


def check_terms(
    objective: Objective | None,
    retain: Objective | None,
    *,
    forget_rows: Sequence[Row],
    retain_rows: Sequence[Row],
    refusals: Sequence[str],
    config: "PretrainedConfig",
) -> None:
    """Raise `UserError` for objectives that can't do what is asked of them with these rows and this model."""
    if objective is not None:
        check_not_empty(forget_rows, "forget")
    if retain is not None and not len(retain_rows):
        raise UserError(
            f"retain objective {type(retain).__name__} has no rows to keep; give a retain set, or a method without a "
            f"retain objective."
        )
    lacks = any(PREFERRED not in row for row in forget_rows)
    if objective is not None and objective.wrong_answers == "preferred" and lacks:
        first = next(i for i, row in enumerate(forget_rows) if PREFERRED not in row)
        raise UserError(
            f"{objective.title} prefers another answer to each forget row, and row {first} has none; give wrong "
            f"answers (--augment FILE; expunge augment writes one), or rows with chosen and rejected."
        )
    text = config.get_text_config()
    layers = text.num_hidden_layers
    for term in (objective, retain):
        if term is not None and not is_ours(type(term)):
            check_loss(term, vocab_size=text.vocab_size, hidden_size=text.hidden_size)
        if term is not None and term.needs.layer is not None and term.needs.layer >= layers:
            raise UserError(
                f"method: layer {term.needs.layer} of {type(term).__name__} is out of range; the model has layers "
                f"0 to {layers - 1}, so give one of these as layer."
            )
    # Only now, since an objective of one's own may fail to name its needs.
    if objective is not None and objective.needs.refusal and lacks and not refusals:
        raise UserError(
            f"{objective.title} prefers a refusal to the answer, and there are no refusals; give some, or use npo."
        )
    if objective is not None and retain is not None:
        check_disjoint(forget_rows, retain_rows)


def encode_sets(
    objective: Objective | None,
    retain: Objective | None,
    *,
    forget_rows: Sequence[Row],
    retain_rows: Sequence[Row],
    refusals: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    config: "PretrainedConfig",
    args: UnlearnConfig,
) -> Sets:
    """Encode the rows of every role that the objectives use; refusals are drawn for the forget rows by `args.seed`.

    A row that says what is preferred to its answer (`chosen`, or a benchmark's `preferred`) has that in place of a
    refusal. Where the objective has a `wanted` answer, its tokens are the targets of the forget rows.
    Sequences are held to `args.max_length`, or to the model's context length without it, as `encode_rows` says.
    Raises `UserError` for what is no row of a known format, too, since rows come from Python as well.
    """
    forget = checked(forget_rows, "forget") if objective is not None else []
    kept = checked(retain_rows, "retain") if retain is not None else []
    limit = args.max_length or getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and not 0 <= args.overlap < limit:
        raise UserError(f"train.overlap must be from 0 to {limit - 1}, got {args.overlap}; a part has {limit} tokens.")
    options: dict[str, Any] = {
        "max_length": limit,
        "overflow": args.overflow,
        "overlap": args.overlap,
        "assistant_turns": args.assistant_turns,
    }
    refusal_rows: list[Row] = []
    if objective is not None and objective.needs.refusal:
        generator = torch.Generator().manual_seed(args.seed)
        drawn = torch.randint(max(1, len(refusals)), (len(forget),), generator=generator).tolist()
        said = [row[PREFERRED] if PREFERRED in row else refusals[int(i)] for row, i in zip(forget, drawn, strict=True)]
        refusal_rows = [
            refused(row, text, assistant_turns=args.assistant_turns) for row, text in zip(forget, said, strict=True)
        ]
    sets = Sets(
        forget=encode_rows(
            forget, tokenizer, wanted=objective.wanted if objective is not None else None, name="forget", **options
        ),
        retain=encode_rows(kept, tokenizer, name="retain", **options),
        refusal=encode_rows(refusal_rows, tokenizer, name="refusals", **options),
    )
    _check_tokens(sets, getattr(config.get_text_config(), "vocab_size", None), tokenizer)
    return sets


def checked(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows as `read_rows` would give them, with the columns that a benchmark adds."""
    return [
        keeping(row, {**normalise(row, f"{name}: row {i}"), **{c: row[c] for c in ("opening", PREFERRED) if c in row}})
        for i, row in enumerate(rows)
    ]


def _check_tokens(sets: Sets, size: int | None, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise `UserError` for a token that the model has no embedding for."""
    for name in ("forget", "retain", "refusal"):
        for row, encoded in enumerate(getattr(sets, name)):
            if size is not None and (most := max(*encoded.input_ids, *encoded.wanted)) >= size:
                token = tokenizer.convert_ids_to_tokens(most)
                raise UserError(
                    f"{name}: sequence {row} holds the token {token!r} ({most}), for which a model of {size} tokens "
                    f"has no embedding; take it out."
                )


KEYWORDS = ("callbacks", "optimizers", "optimizer_cls_and_kwargs")
"""Arguments that `UnlearnTrainer` passes on to `transformers.Trainer`."""

NOT_OURS = {
    "tokenizer": "it is called processing_class",
    "train_dataset": "give forget_dataset and retain_dataset",
    "eval_dataset": "give evaluate, a function of the model that returns numbers by name",
    "compute_metrics": "give evaluate, a function of the model that returns numbers by name",
    "preprocess_logits_for_metrics": "give evaluate, a function of the model that returns numbers by name",
    "compute_loss_func": "write an objective (docs/how-to/objective.md)",
    "data_collator": "rows are put together here",
    "model_init": "give the model",
    "ref_model": "the reference is the starting model; args.reference says where it is kept",
}
"""Arguments of other trainers, and what stands in their place."""


def check_keywords(given: Mapping[str, Any]) -> None:
    """Raise `UserError` for an argument that `UnlearnTrainer` does not have."""
    for name in given:
        if name in NOT_OURS:
            raise UserError(f"UnlearnTrainer takes no {name}: {NOT_OURS[name]}.")
        if name not in KEYWORDS:
            known = ("objective", "retain", "forget_dataset", "retain_dataset", "refusals", "processing_class",
                     "peft_config", "teacher", "evaluate", *KEYWORDS)  # fmt: skip
            raise UserError(f"UnlearnTrainer takes no {name}.{did_you_mean(name, known)}")


def check_kinds(*, model: Any, refusals: Any, processing_class: Any, peft_config: Any, **others: Any) -> None:
    """Raise `UserError` for an argument of `UnlearnTrainer` that is something else than it must be."""
    from peft import PeftConfig

    inner = getattr(processing_class, "tokenizer", None)
    if isinstance(inner, PreTrainedTokenizerBase):
        raise UserError(f"processing_class has a {type(inner).__name__} in it; give its .tokenizer.")
    tokenizer, adapter, teacher, evaluate = processing_class, peft_config, others["teacher"], others["evaluate"]
    is_texts = not isinstance(refusals, str) and all(isinstance(text, str) for text in refusals)
    for name, value, fits, what in (
        ("model", model, _is_model(model) or isinstance(model, str | Path), "a causal LM, its folder or its hub name"),
        ("processing_class", tokenizer, tokenizer is None or isinstance(tokenizer, PreTrainedTokenizerBase),
         "a tokenizer, as AutoTokenizer.from_pretrained gives it"),
        ("peft_config", adapter, adapter is None or isinstance(adapter, PeftConfig), "a peft.LoraConfig"),
        ("refusals", refusals, is_texts, "a list of texts"),
        ("teacher", teacher, teacher is None or _is_model(teacher), "a causal LM"),
        ("evaluate", evaluate, evaluate is None or callable(evaluate), "a function of the model"),
        ("callbacks", others["callbacks"], isinstance(others["callbacks"], list | None), "a list"),
    ):  # fmt: skip
        if not fits:
            shown = " ".join(repr(value).split())
            raise UserError(f"{name} must be {what}, got {type(value).__name__} ({shown:.60}).")


def _is_model(value: Any) -> bool:
    return isinstance(value, nn.Module) and hasattr(value, "config")


def arguments_for(model: CausalLM | str | Path, args: Any, *, evaluates: bool) -> UnlearnConfig:
    """The training arguments: those given, or the defaults in a folder named after the model."""
    if args is None:
        name = model if isinstance(model, str | Path) else getattr(getattr(model, "config", None), "_name_or_path", "")
        args = UnlearnConfig(output_dir=f"{Path(name).name or 'model'}-unlearned")
    if not isinstance(args, UnlearnConfig):
        raise UserError(f"args is a {type(args).__name__}; give an UnlearnConfig, which takes the same fields.")
    if args.eval_strategy != "no" and not evaluates:
        when = IntervalStrategy(args.eval_strategy).value
        raise UserError(
            f"eval_strategy is {when!r}, and there is nothing to evaluate with; give UnlearnTrainer(evaluate=…) a "
            f"function of the model, or leave eval_strategy out."
        )
    return args


def objectives_of(objective: Any, retain: Any) -> tuple[Objective | None, Objective | None]:
    """The forget and the retain objective, each given as itself or by its name in recipes."""
    if isinstance(objective, str):
        parts = split_method(objective)
        if "retain" in parts and retain is not None:
            raise UserError(f"objective {objective!r} names a retain objective, and retain is given too; give one.")
        kind = objective_class(parts["forget"]["name"], METHODS, "forget objective")
        if not issubclass(kind, Objective):
            raise UserError(
                f"objective {objective!r} is a step on the weights, which a recipe makes: expunge run --method "
                f"{objective}."
            )
        if kind.trains != "model":
            raise UserError(
                f"objective {objective!r} trains an assistant beside the model, which a recipe does: expunge run "
                f"--method {objective}."
            )
        objective, retain = _without_options(kind), parts.get("retain", {}).get("name", retain)
        retain = objective.own_retain if retain is None else retain
    if isinstance(retain, str):
        retain = _without_options(objective_class(retain, RETAIN, "retain objective"))
    for name, value in (("objective", objective), ("retain", retain)):
        if value is not None and not isinstance(value, Objective):
            made = " (call it: an objective is an instance)" if isinstance(value, type) else ""
            raise UserError(f"{name} must be an objective, such as objectives.NPO(), or a name, got {value!r}{made}.")
    for name, value, others, side in (
        ("objective", objective, RETAIN, "retain"),
        ("retain", retain, FORGET, "objective"),
    ):
        if type(value) in others.values():
            raise UserError(f"{name} can't be {type(value).__name__}, which is for the other rows; give it as {side}.")
    return objective, NLL() if objective is None and retain is None else retain


def check_used(objective: Objective | None, retain: Objective | None, forget: Any, retained: Any) -> None:
    """Raise `UserError` for rows that no objective reads."""
    for term, name, data, rows in (
        (objective, "objective", "forget_dataset", forget),
        (retain, "retain", "retain_dataset", retained),
    ):
        if term is None and len(rows):
            raise UserError(f"{data} does nothing without {name}; give {name} too, or leave {data} out.")


def check_sharpness(forget: Way | None, args: UnlearnConfig) -> None:
    """Raise `UserError` where `sam_rho` has no training of the model's weights on a forget loss to work on."""
    if args.sam_rho is not None and (not isinstance(forget, Objective) or forget.trains in ("assistant", "difference")):
        does = "trains an assistant" if isinstance(forget, Objective) else "trains nothing"
        what = "nothing is forgotten" if forget is None else f"{forget.title} {does}"
        raise UserError(f"sam_rho makes forgetting hold within reach of the model's weights, and {what}; leave it out.")


def tell_unread(objective: Objective | None, rows: Sequence[Row], column: str = PREFERRED) -> None:
    """Warn where rows say in `column` what is preferred to their answers and the objective prefers nothing."""
    if objective is not None and not objective.needs.refusal and any(column in row for row in rows):
        log.warning("%s does not read the chosen answers of the forget rows; dpo prefers them", objective.title)


def _without_options(kind: type[Objective]) -> Objective:
    """An objective of all defaults. Raises `UserError` for a class of a user's own that has options without one."""
    wanting = [name for name, field in kind.model_fields.items() if field.is_required()]
    if wanting:
        raise UserError(f"{kind.recipe_name()} has no default for {wanting[0]}; give {kind.__name__}({wanting[0]}=…).")
    return kind()


def rows_of(dataset: Any, name: str) -> Sequence[Row]:
    """The rows of a data set, which must have a length and hold mappings, or of a file, a folder or a hub name."""
    if dataset is None:
        return ()
    if isinstance(dataset, str | Path):
        return read_rows(dataset)
    if isinstance(dataset, Mapping):
        splits = ", ".join(map(str, dataset))
        raise UserError(f"{name} is a mapping with the splits {splits}; give one of them: {name}=dataset['train'].")
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise UserError(f"{name} is a {type(dataset).__name__} without a length; give a list of rows, or a Dataset.")
    for row in dataset:
        if not isinstance(row, Mapping):
            raise UserError(f"{name}: a row is {row!r:.60}; rows are mappings, such as {{'question': …, 'answer': …}}.")
    return cast(Sequence[Row], dataset)
