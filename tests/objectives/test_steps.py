"""Steps on the weights against their definitions, in float64."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge.objectives import Noise, RepSelect
from expunge.objectives.steps import collapsed, norm
from expunge.training.arguments import UnlearnConfig
from expunge.training.stepping import StepTrainer, mlp_layers

Shape = tuple[int, int]


def literal(G: Tensor, n: int) -> Tensor:
    """Both sides in turn, as the paper's code has it: project, divide by S/S_min, put back."""
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    scale = S[:n] / S[:n].min()
    V, U = Vh.mT[:, :n], U[:, :n]
    inputs = G - G @ V @ V.mT + (G @ V / scale) @ V.mT
    return inputs - U @ U.mT @ inputs + U @ ((U.mT @ inputs) / scale[:, None])


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (9, 9)])
@pytest.mark.parametrize("n", [1, 3, 4])
def test_collapsed_is_the_definition(shape: Shape, n: int) -> None:
    G = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    torch.testing.assert_close(collapsed(G, n), literal(G, n), rtol=1e-10, atol=1e-10)


def test_of_a_small_matrix_at_most_half_the_components_are_divided() -> None:
    G = torch.randn(8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(collapsed(G, 512), literal(G, 4), rtol=1e-10, atol=1e-10)


def test_few_components_of_a_large_matrix_are_near_enough() -> None:
    torch.manual_seed(0)
    G = torch.randn(64, 6, dtype=torch.float64) @ torch.randn(6, 64, dtype=torch.float64)
    torch.testing.assert_close(collapsed(G, 6), literal(G, 6), rtol=1e-6, atol=1e-6)


class Given:
    """A source of these weights and gradients."""

    def __init__(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        self._weights, self._gradients = weights, gradients

    def weights(self) -> Mapping[str, Tensor]:
        return self._weights

    def gradients(self, *, rank: int, rate: float) -> Mapping[str, Tensor]:
        assert (rank, rate) == (8, 0.01)
        return self._gradients


def test_all_matrices_move_together_by_the_distance() -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randn(6, 8, dtype=torch.float64, generator=draw) for _ in range(4)]
    given = Given(dict(zip("ab", tensors[:2], strict=True)), dict(zip("ab", tensors[2:], strict=True)))
    changes = RepSelect(distance=0.25).changes(given)
    assert norm(changes) == pytest.approx(0.25 * norm(given.weights()), rel=1e-12)
    eta = [-changes[name] / literal(given.gradients(rank=8, rate=0.01)[name], 3) for name in "ab"]
    torch.testing.assert_close(torch.stack(eta), eta[0][0, 0].expand(2, 6, 8), rtol=1e-8, atol=0)
    assert eta[0][0, 0] > 0


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_gradients_are_those_of_dense_logits_under_the_taught_adapter(
    rate: float,
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    tiny_tokenizer: Any,
    tiny_rows: tuple[list[dict[str, str]], list[dict[str, str]]],
) -> None:
    from peft import LoraConfig, get_peft_model

    forget = tiny_rows[0]
    args = UnlearnConfig(output_dir=str(tmp_path), per_device_train_batch_size=len(forget), save_strategy="no")
    model = tiny_model().double()
    trainer = StepTrainer(model, args, step=RepSelect(), forget_dataset=forget, processing_class=tiny_tokenizer)
    (batch,) = trainer.get_train_dataloader()
    torch.manual_seed(1)
    found = trainer.gradients(rank=4, rate=rate)

    other = tiny_model().double()
    names = list(mlp_layers(other))
    torch.manual_seed(1)
    adapted: Any = get_peft_model(other, LoraConfig(r=4, lora_alpha=4, target_modules=names))

    def answers() -> Tensor:
        logp = adapted(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
        target = batch["labels"][:, 1:]
        return logp.gather(-1, target.clamp(min=0)[..., None])[..., 0][target >= 0].mean()

    if rate:
        answers().backward()
        for p in adapted.parameters():
            if p.requires_grad:
                p.data += rate * p.grad
    layers = [other.get_submodule(name).base_layer.weight.requires_grad_(True) for name in names]
    expected = torch.autograd.grad(answers(), layers)
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-10)
    # The model is as it was, without the adapter.
    assert {k: v.tolist() for k, v in model.state_dict().items()} == {
        k: v.tolist() for k, v in tiny_model().double().state_dict().items()
    }


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.1), (1.0, 1.0), (0.5, 0.0)])
@pytest.mark.parametrize("shape", [(6, 10), (4,)])
def test_noise_is_the_definition(alpha: float, beta: float, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = Noise(alpha=alpha, beta=beta).noised(weight, torch.Generator().manual_seed(1))
    N = torch.zeros(shape, dtype=torch.float64)
    if len(shape) == 2:
        torch.nn.init.xavier_uniform_(N, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, (1 - alpha) * weight + alpha * beta * N, rtol=1e-10, atol=1e-10)
