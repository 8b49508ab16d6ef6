"""Activation checkpointing under one name: transformers called it gradient checkpointing before 5.23."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

from expunge.modeling.causal import CausalLM

if TYPE_CHECKING or "activation_checkpointing" in TrainingArguments.__dataclass_fields__:
    Arguments = TrainingArguments
else:

    @dataclass
    class Arguments(TrainingArguments):
        """`transformers.TrainingArguments` with the newer names of two fields."""

        activation_checkpointing: bool = False
        activation_checkpointing_kwargs: dict[str, Any] | str | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            self.gradient_checkpointing = self.activation_checkpointing
            self.gradient_checkpointing_kwargs = self.activation_checkpointing_kwargs


def checkpoint_activations(model: CausalLM, kwargs: dict[str, Any] | str | None = None) -> None:
    """Have `model` recompute its activations in the backward; `kwargs` are those of `torch.utils.checkpoint`."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(kwargs)
    else:
        model.gradient_checkpointing_enable(kwargs)
