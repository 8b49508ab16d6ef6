"""The line between a model before and after training."""

from typing import Any

import pytest
import torch

from expunge.modeling.interpolation import Line


def test_the_ends_are_exact_and_the_middle_is_the_mean(tiny_model: Any) -> None:
    start, trained = tiny_model(seed=0), tiny_model(seed=1)
    ends = [{k: v.clone() for k, v in model.state_dict().items()} for model in (start, trained)]
    line = Line(trained, start)
    line.go_to(0.5)
    for name, weight in trained.state_dict().items():
        torch.testing.assert_close(weight, (ends[0][name] + ends[1][name]) / 2)
    for share, end in ((0.0, ends[0]), (1.0, ends[1])):
        line.go_to(share)
        assert all(torch.equal(weight, end[name]) for name, weight in trained.state_dict().items())


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_an_adapter_s_change_is_scaled(share: float, tiny_model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    adapted = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    layers: list[Any] = [module for module in adapted.modules() if hasattr(module, "get_delta_weight")]
    before = [layer.get_delta_weight("default").clone() for layer in layers]
    Line(adapted).go_to(share)
    assert len(layers) == 6
    for layer, change in zip(layers, before, strict=True):
        torch.testing.assert_close(layer.get_delta_weight("default"), share * change)


def test_a_start_of_another_shape_is_refused(tiny_model: Any) -> None:
    with pytest.raises(KeyError):
        Line(tiny_model(layers=3), tiny_model(layers=2))
