"""Settings that a step on the weights, or noise, can't be joined to: they are refused before anything is read."""

from expunge.errors import UserError
from expunge.objectives import Step
from expunge.recipe.config import Method, Recipe
from expunge.system import ranks

READ = {
    *("max_length", "overflow", "overlap", "assistant_turns", "per_device_train_batch_size", "num_train_epochs"),
    *("data_seed", "bf16", "fp16", "use_cpu", "disable_tqdm", "report_to", "run_name", "save_strategy"),
}
"""Training keys that a step reads."""


def check_noise(recipe: Recipe, method: Method) -> None:
    """Raise `UserError` for noise on weights that unlearning leaves as they are, or that are not all here."""
    if method.noise is None:
        return
    if method.forget.trains not in ("model", "student"):
        raise UserError(
            f"method.noise: {method.forget.title} leaves the model's own weights as they are; leave it out."
        )
    if recipe.model.lora is not None:
        raise UserError("method.noise: an adapter leaves the model's own weights as they are; leave model.lora out.")
    if ranks.count() > 1:
        raise UserError("method.noise: one process distils into noised weights; give the command without a launcher.")


def check_step(recipe: Recipe, method: Method) -> None:
    """Raise `UserError` for settings beside a step that would do nothing, or that it can't do with."""
    if not isinstance(method.forget, Step):
        return
    name = method.forget.title
    if recipe.model.lora is not None:
        raise UserError(f"model.lora: {name} moves the model's own weights, which an adapter leaves; leave lora out.")
    if ranks.count() > 1:
        raise UserError(f"{name} is a step on the weights, which one process makes; give it without a launcher.")
    if recipe.evaluate.raise_rate:
        raise UserError(f"evaluate.raise_rate: {name} has no learning rate to raise; leave raise_rate out.")
    alone = all(isinstance(each.forget, Step) for each in recipe.methods)
    given = {*method.train.model_fields_set, *(recipe.train.model_fields_set if alone else ())}
    if unread := sorted(given - READ):
        raise UserError(f"train.{unread[0]}: {name} is a step on the weights, which does not read it; leave it out.")
