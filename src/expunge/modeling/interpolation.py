"""Weights on the line between a model before and after training (WiSE-FT; Wortsman et al. 2022, arXiv 2109.01903).

Nearer to the start a fine-tuned model keeps more of what the start could do than an earlier epoch does.
"""

from typing import Any

import torch


class Line:
    """Makes a trained model one of those between its start (share 0) and its present weights (share 1), in place.

    Both ends are held on the CPU. Of an adapter only the second factor moves: its product with the first is the whole
    change of a layer, and begins at zero.
    """

    def __init__(self, trained: Any, start: Any = None) -> None:
        """`start` is the model before training, with parameters of the same names; an adapter needs none.

        Raises `KeyError` for a trained parameter that `start` lacks.
        """
        moving = {name: weight for name, weight in trained.named_parameters() if weight.requires_grad}
        if hasattr(trained, "peft_config"):
            moving = {name: weight for name, weight in moving.items() if ".lora_B." in name}
            begin = {name: torch.zeros_like(weight, device="cpu") for name, weight in moving.items()}
        else:
            known = dict(start.named_parameters())
            begin = {name: known[name].detach().to("cpu", weight.dtype) for name, weight in moving.items()}
        self._moving = moving
        self._ends = {name: (begin[name], weight.detach().cpu().clone()) for name, weight in moving.items()}

    @torch.no_grad()
    def go_to(self, share: float) -> None:
        """Set the weights to (1 − share) start + share trained; at 1 they are the trained ones, bit for bit."""
        for name, weight in self._moving.items():
            start, trained = self._ends[name]
            weight.copy_(trained if share == 1 else torch.lerp(start, trained, share))
