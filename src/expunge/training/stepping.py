"""`StepTrainer`: makes a step on the weights where another method trains, with the same log, evaluations and callbacks.

It takes a few passes over the forget rows, so it writes no checkpoints: an interrupted step starts over.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.trainer_utils import TrainOutput

from expunge.errors import UserError
from expunge.modeling.adapter import adapt
from expunge.modeling.forward import decoder_layers
from expunge.objectives.steps import Step, norm
from expunge.training.arguments import UnlearnConfig
from expunge.training.trainer import UnlearnTrainer


class StepTrainer(UnlearnTrainer):
    """Change the weights of `model` as `step` says, a part in each epoch, and evaluate in between.

    The other arguments are those of `UnlearnTrainer`. It is the `Source` of what the step asks for.
    """

    def __init__(self, model: Any, args: UnlearnConfig, *, step: Step, **options: Any) -> None:
        super().__init__(model, args, objective=step.objective, **options)
        self.step = step
        self._layers = only_mlps(self.model)
        self._start: Mapping[str, Tensor] = {}
        self._changes: Mapping[str, Tensor] = {}

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Make the step from the model as it is, whatever a checkpoint says."""
        state, events = self.state, self.callback_handler
        state.max_steps = state.num_train_epochs = self._epochs()
        self.control = events.on_train_begin(self.args, state, self.control)
        for epoch in range(1, state.max_steps + 1):
            self.control = events.on_step_begin(self.args, state, self.control)
            if epoch == 1:
                self._prepare()
            self.restore(epoch)
            state.global_step, state.epoch = epoch, float(epoch)
            self.control = events.on_step_end(self.args, state, self.control)
            self.control = events.on_epoch_end(self.args, state, self.control)
            self.log({"distance": norm(self._changes) / norm(self._start) * epoch / state.max_steps})
            if self.control.should_evaluate:
                self.evaluate()
            if self.control.should_training_stop:
                break
        self.control = events.on_train_end(self.args, state, self.control)
        return TrainOutput(state.global_step, 0.0, {})

    @torch.no_grad()
    def restore(self, step: int) -> None:
        """Set the weights to those after `step` of the equal parts."""
        for name, weight in self.weights().items():
            weight.copy_(self._start[name] + step / self.state.max_steps * self._changes[name])

    def _prepare(self) -> None:
        self.model.eval()
        self._start = {name: weight.detach().clone() for name, weight in self.weights().items()}
        self._changes = self.step.changes(self)

    # -- what a step may ask for -----------------------------------------------------------------------------------

    def weights(self) -> Mapping[str, Tensor]:
        return {name: layer.weight for name, layer in self._layers.items()}

    def gradients(self, *, rank: int, rate: float) -> Mapping[str, Tensor]:
        from peft import LoraConfig

        weights = self.weights()
        r = min(rank, *(side for weight in weights.values() for side in weight.shape))
        adapted = adapt(self.model, LoraConfig(r=r, lora_alpha=r, target_modules=list(weights)))
        try:
            lora = [p for p in adapted.parameters() if p.requires_grad]
            for batch in self.get_train_dataloader() if rate else ():
                self._backward(batch)
                with torch.no_grad():
                    for p in lora:
                        assert p.grad is not None
                        p += rate * p.grad  # up: the loss is log p
                        p.grad = None
            for p in lora:
                p.requires_grad_(False)
            for weight in weights.values():
                weight.requires_grad_(True)
            for batch in self.get_train_dataloader():
                self._backward(batch)
        finally:
            adapted.unload()
        gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
        self.model.zero_grad()
        self._terms.clear()
        return gradients

    def _backward(self, batch: dict[str, Tensor]) -> None:
        with self.compute_loss_context_manager():
            counts = self._get_num_items_in_batch([batch], self.args.device)
            loss = self.compute_loss(self.model, self._prepare_inputs(batch), num_items_in_batch=counts)
        loss.backward()


def only_mlps(model: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    """The layers that a step moves, by name; all other weights are frozen, and biases."""
    layers = mlp_layers(model)
    moving = {id(layer.weight) for layer in layers.values()}
    for p in model.parameters():
        p.requires_grad_(id(p) in moving)
    return layers


def mlp_layers(model: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    """The linear layers of the decoder's MLPs by name: all of a decoder layer but those of its attention.

    Raises `UserError` for a model whose MLPs are none, such as one of experts.
    """
    names = {id(module): name for name, module in model.named_modules()}
    found: dict[str, nn.Linear | Conv1D] = {}
    for layer in decoder_layers(model):
        for name, part in layer.named_modules():
            if isinstance(part, nn.Linear | Conv1D) and "attn" not in name and "attention" not in name:
                found[names[id(part)]] = part
    experts = any(p.dim() > 2 for layer in decoder_layers(model) for p in layer.parameters())
    if experts or not found:
        raise UserError(
            f"model: {type(model).__name__} has no linear layers beside its attention that repselect could move "
            f"(mixtures of experts are among these); take another method, such as npo."
        )
    return found
