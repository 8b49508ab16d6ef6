"""Save a model as it was given, and say how large it is."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from expunge.modeling.adapter import under_adapter
from expunge.modeling.bases import record
from expunge.modeling.causal import CausalLM
from expunge.modeling.checkpoint import whereabouts
from expunge.system import manifest
from expunge.system.disk import partial_of, private, remove, writing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def as_saved(model: CausalLM, dtype: torch.dtype | None) -> Any:
    """The model in the dtype in which it is saved, which is what must be measured; changed in place.

    An adapter keeps its own, and so does the base under it.
    """
    separate = [part for name in ("assistant", "start") if (part := getattr(model, name, None)) is not None]
    if dtype is None or hasattr(model, "peft_config") or (hasattr(model, "difference") and not separate):
        return model
    for part in separate or [model]:
        part.to(dtype)
    return model


def save(model: CausalLM, tokenizer: "PreTrainedTokenizerBase", path: Path) -> None:
    """Write model (or adapter) and tokenizer to `path`, as `transformers` reads them from wherever it is called.

    What is there now is replaced. The folder shows under its name when it is whole, and is its owner's alone.
    """
    under = under_adapter(model)
    below = getattr(under, "merged_adapter", None) if under is not model else None
    partial = partial_of(path)
    keep_weights(model)
    with private(), writing(path):
        remove(partial)
        manifest.begin(partial)
        if below is not None:
            below.save(model, partial)
        else:
            name_base(model)
            with same_vocabulary():
                model.save_pretrained(str(partial))
        tokenizer.save_pretrained(partial)
        record(partial)
        manifest.seal(partial)
        remove(path)
        partial.replace(path)


def keep_weights(model: nn.Module) -> None:
    """Have the weights stay as they were trained, in evaluation and when the saved model is loaded.

    In evaluation RWKV divides some of its weights by powers of two, against overflow in float16. They would be saved
    divided, and an adapter on them would weigh too much. Its config is saved with `rescale_every: 0`, which computes
    the same but for rounding. Youtu's padding row, a row of its head too, is set to zero whenever transformers loads
    it. Its config is saved without `pad_token_id`, which only the tokenizer needs.
    """
    for part in model.modules():
        if hasattr(part, "layers_are_rescaled"):
            rwkv: Any = part
            if rwkv.layers_are_rescaled:
                mode, rwkv.training = rwkv.training, True
                rwkv._rescale_layers()
                rwkv.training = mode
            rwkv.config.rescale_every = 0
        if isinstance(part, PreTrainedModel) and _loses_padding(part):
            part.config.pad_token_id = None
            for embedding in part.children():
                if isinstance(embedding, nn.Embedding):
                    embedding.padding_idx = None


def _loses_padding(model: PreTrainedModel) -> bool:
    """Whether transformers, as it loads a model of this class, zeroes the padding row of an embedding that it read."""
    read = nn.Embedding(2, 1, padding_idx=0, _weight=torch.ones(2, 1))
    read.weight._is_hf_initialized = True  # pyright: ignore[reportAttributeAccessIssue]
    hollow = object.__new__(type(model))  # without a weight that drawing anew could reach
    nn.Module.__init__(hollow)
    hollow.config = model.config
    with torch.no_grad(), suppress(AttributeError):  # of a class that looks for the embedding in itself
        hollow._init_weights(read)
    return not bool(read.weight.all())


@contextmanager
def same_vocabulary() -> Iterator[None]:
    """Leave out that PEFT takes the vocabulary to be the base's, which it is, where a base is an adapter's folder.

    Such a folder holds no config.json in which PEFT could look.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Could not find a config file in")
        yield


def name_base(model: nn.Module) -> None:
    """Have the adapters on a model name their base by its full path, where it is a folder or a GGUF file."""
    packed = getattr(under_adapter(model), "packed_in", None)
    for config in getattr(model, "peft_config", {}).values():
        if packed or config.base_model_name_or_path:
            config.base_model_name_or_path = packed or whereabouts(config.base_model_name_or_path)


def parameter_count(model: nn.Module) -> int:
    """Distinct parameters, tied ones once."""
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


def describe(model: nn.Module) -> str:
    """One line for the log: class, parameters, trainable share, dtype."""
    total, trainable = parameter_count(model), sum(p.numel() for p in model.parameters() if p.requires_grad)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return json.dumps({"class": type(model).__name__, "parameters": total, "trainable": trainable, "dtype": dtype})
