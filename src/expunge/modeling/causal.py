"""The type of a model: a causal LM of transformers (our difference of two models among them), or one under PEFT."""

from typing import TYPE_CHECKING, TypeAlias, Union

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CausalLM: TypeAlias = Union["PreTrainedModel", "PeftModel"]
"""A causal language model with its configuration, with or without an adapter on it.

What calls `generate` takes `Any`: transformers types its `self` by a protocol that none of its models fits.
"""
