"""Sizes of models with random weights to measure on."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.training.checkpointing import checkpoint_activations


@dataclass(frozen=True)
class Shape:
    """A Llama's size. `heads` of 64 or 128 dimensions each, `kv_heads` of them with keys and values of their own.

    With `checkpointing` it makes its layers' activations again in the backward instead of keeping them.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    checkpointing: bool = False

    def build(self, device: torch.device, dtype: torch.dtype) -> Any:
        """The model, randomly initialised on the device; the same for every call."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=4096,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
        with torch.device(device):
            model: Any = LlamaForCausalLM._from_config(config, dtype=dtype).eval()
        if self.checkpointing:
            checkpoint_activations(model)
        return model


SHAPES = {
    "tiny": Shape(layers=4, hidden=256, intermediate=688, heads=4, kv_heads=4, vocab=4_096),
    "small": Shape(layers=16, hidden=1_024, intermediate=2_816, heads=16, kv_heads=16, vocab=32_000),
    "wide": Shape(layers=8, hidden=512, intermediate=1_408, heads=8, kv_heads=8, vocab=128_256),
    "1b": Shape(layers=16, hidden=2_048, intermediate=8_192, heads=32, kv_heads=8, vocab=128_256),
    "8b": Shape(layers=32, hidden=4_096, intermediate=14_336, heads=32, kv_heads=8, vocab=128_256),
}
"""`small` and `wide` are what two CPU cores can carry; `1b` and `8b` are Llama 3.2 1B's and Llama 3 8B's."""


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token a word, w0 to w<V − 1>."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", pad_token="w0")


def usual_length(shape: str) -> int:
    """Tokens of a sequence that suit the size: the smallest is there to be done within a minute."""
    return 64 if shape == "tiny" else 256
