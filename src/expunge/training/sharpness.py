"""Weights moved a little way up a loss, and back: what sharpness-aware minimization needs of a model."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def uphill(parameters: Iterable[nn.Parameter], radius: float) -> Iterator[None]:
    """Inside, weights stand at θ + `radius` · g/‖g‖, g being the gradients that they came with, which are taken away.

    Afterwards they are, bit by bit, what they were. Holds a copy of all weights that train (Foret et al. 2021,
    arXiv 2010.01412, eq. 2).
    """
    moved = {p: p.grad for p in parameters if p.grad is not None}
    with torch.no_grad():
        wide = [torch.promote_types(grad.dtype, torch.float32) for grad in moved.values()]
        norms = [torch.linalg.vector_norm(g, dtype=d) for g, d in zip(moved.values(), wide, strict=True)]
        norm = torch.stack(norms).norm()
        before = {p: p.clone() for p in moved}
        for p, grad in moved.items():
            p.add_(grad * (radius / norm.clamp(min=torch.finfo(norm.dtype).tiny)).to(grad.dtype))
            p.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for p, kept in before.items():
                p.copy_(kept)
