"""Weights rounded to few bits, in the formats of GGUF files: what was forgotten may lie within the rounding.

Source: Zhang et al. 2024, arXiv 2410.16454, who find that 4 bits bring much of it back.
"""

from importlib.util import find_spec

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from expunge.errors import UserError
from expunge.stress.attack import PROBABILITY, Clock, Victim, known_probability
from expunge.stress.outcome import Outcome, Point

FORMATS = {8: "Q8_0", 4: "Q4_0"}
"""Bits a weight, and what llama.cpp calls the format: blocks of 32 weights with one scale."""


def quantization(victim: Victim) -> list[Outcome]:
    """Measure what the model knows: with its own weights, and with weights rounded to 8 and to 4 bits.

    Raises `UserError` without the package `gguf`.
    """
    check()
    rows, clock = victim.benchmark.forget, Clock()
    points = []
    for bits in (32, *FORMATS):
        model, tokenizer = victim.load()
        if bits in FORMATS:
            round_weights(model, FORMATS[bits])
        points.append(Point(bits, known_probability(model, tokenizer, rows)))
    return [Outcome("quantization", "GGUF", "bits a weight", PROBABILITY, tuple(points), clock.lap())]


def check() -> None:
    """Raise `UserError` without the package that rounds."""
    if find_spec("gguf") is None:
        raise UserError("stress: quantization needs the package gguf; pip install 'expunge[gguf]', or leave it out.")


@torch.no_grad()
def round_weights(model: nn.Module, name: str) -> None:
    """Round the matrices of linear layers and embeddings to the format `name`, in place.

    As in a GGUF file, biases and norms keep their precision, and so does a matrix whose rows are no
    multiple of a block.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    kind = GGMLQuantizationType[name]
    block, _ = GGML_QUANT_SIZES[kind]
    seen: set[int] = set()
    for module in model.modules():
        if not isinstance(module, nn.Linear | nn.Embedding | Conv1D) or id(module.weight) in seen:
            continue
        seen.add(id(module.weight))
        # A file holds the rows of [out, in]; GPT-2's layers hold [in, out].
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        if weight.shape[-1] % block:
            continue
        rounded = dequantize(quantize(weight.float().cpu().numpy(), kind), kind)
        weight.copy_(torch.from_numpy(rounded))
