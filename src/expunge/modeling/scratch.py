"""A small Llama built from nothing, and the byte-level BPE that it reads."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import torch
from pydantic import Field, model_validator
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.encode import end_token
from expunge.system.options import Options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ScratchConfig(Options):
    """A Llama built from nothing, with a byte-level BPE trained on the data it will learn.

    For the demo and for machines without a network; such a model knows only what it is taught.
    """

    layers: int = Field(default=4, ge=1, description="decoder layers")
    hidden: int = Field(default=128, ge=8, description="width; must be divisible by heads")
    heads: int = Field(default=4, ge=1, description="attention heads")
    vocab: int = Field(default=1024, ge=260, description="tokens of the BPE, 256 bytes and the specials included")
    context: int = Field(default=256, ge=16, le=1_000_000, description="longest sequence, tokens")

    @model_validator(mode="after")
    def _even_heads(self) -> "ScratchConfig":
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden must be a multiple of {2 * self.heads} for {self.heads} heads, got {self.hidden}")
        return self


def train_tokenizer(texts: Iterable[str], config: ScratchConfig) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `config.vocab` tokens trained on `texts`, with its own end and padding tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        model_max_length=config.context,
        clean_up_tokenization_spaces=False,
    )


def build_scratch(config: ScratchConfig, tokenizer: "PreTrainedTokenizerBase", *, seed: int) -> LlamaForCausalLM:
    """A randomly initialised Llama of the given size, float32; the same for the same seed."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(scratch_config(config, tokenizer))


def scratch_config(config: ScratchConfig, tokenizer: "PreTrainedTokenizerBase") -> LlamaConfig:
    """The architecture that `build_scratch` fills with random weights."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden,
        intermediate_size=config.hidden * 8 // 3 // 8 * 8,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end_token(tokenizer),
        pad_token_id=cast(int, tokenizer.pad_token_id),
    )
