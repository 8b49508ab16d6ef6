"""`LogitDifferenceForCausalLM`: a model from whose logits an assistant's are subtracted, as one ordinary causal LM.

z = z_base + w · z_assistant, with w = −α for ULD, and z = z_base + w · (z_assistant − z⁰_assistant) for Offset.
Scoring, generating and training all go through the one `DifferenceHead`.

The assistant is either the base's own first K layers under a LoRA adapter, or a model of its own with the base's
vocabulary. In the first case layers 1..K run once for both (`pairing.py`), so that a decoded token reads every weight
once.

Shapes: B sequences, T positions, D hidden size, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import isfinite, log
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.pytorch_utils import Conv1D

from expunge.errors import UserError
from expunge.modeling.adapter import check_adapter
from expunge.modeling.assistant import final_norm, layer_count, linear_names
from expunge.modeling.checkpoint import load_config, whereabouts
from expunge.modeling.logprobs import Head, vocabulary_size
from expunge.modeling.pairing import PairedLayers, linear_of_pair
from expunge.modeling.saving import same_vocabulary
from expunge.modeling.weights import load_weights

ASSISTANT = "assistant"
"""The sub-folder of a checkpoint that holds the assistant: a LoRA adapter, or a whole small model."""

REMOTE = Path("modeling_logit_difference.py")
"""A line of code in every checkpoint by which transformers alone finds these classes (`trust_remote_code`)."""


class LogitDifferenceConfig(PreTrainedConfig):
    """The configuration of a difference: the base, and the assistant whose logits are subtracted.

    base: folder or hub name of the model whose weights stay as they are.
    weight: w above; negative subtracts.
    tau: tokens less likely than `tau` times the base's likeliest and not among its `tau · V` likeliest gain nothing
        from the difference (see `neutralise`); 0 lets every token take part.
    layers: how many of the base's own layers the assistant has; `None` for a model of its own.
    relative: whether what the assistant said before its training is taken off again (Offset).
    start: folder or hub name of what a separate assistant was before its training.
    assistant_layers: layers of separate assistants, which a cache must have room for; filled in from the models.
    base_config: the base's own configuration; filled in likewise.
    """

    model_type = "logit_difference"

    def __init__(
        self,
        base: str = "",
        weight: float = -0.8,
        tau: float = 1e-2,
        layers: int | None = None,
        relative: bool = False,
        start: str | None = None,
        assistant_layers: int = 0,
        base_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.base, self.weight, self.tau = base, weight, tau
        self.layers, self.relative, self.start = layers, relative, start
        self.assistant_layers = assistant_layers
        self.base_config = base_config or {}
        super().__init__(**kwargs)

    def get_text_config(self, *_args: Any, **_kwargs: Any) -> Any:
        """The base's configuration, which decides the cache, the context length and the vocabulary."""
        if not self.base_config:
            return self
        if "_text" not in vars(self):
            text = AutoConfig.for_model(**self.base_config)
            for key in HEAD_KEYS:
                setattr(text, key, None)
            if self.assistant_layers and getattr(text, "layer_types", None):
                text.layer_types = [*text.layer_types, *["full_attention"] * self.assistant_layers]
            text.num_hidden_layers += self.assistant_layers
            vars(self)["_text"] = text
        return vars(self)["_text"]

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in super().to_dict().items() if k != "_text"}


HEAD_KEYS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Attributes by which some models change their logits; `DifferenceHead` does so itself, and nothing may do it again."""


def neutralise(assistant_CV: Tensor, base_CV: Tensor, tau: float) -> Tensor:
    """The assistant's logits, raised to at least their mean where the base finds a token implausible, [C, V].

    Implausible are tokens whose base log-probability lies under min(k-th largest, largest + log τ), k = max(1, ⌊τV⌋).
    Such a token can then be pushed down but never up by subtracting, while its log-probability stays finite.
    """
    if tau == 0:
        return assistant_CV
    k = max(1, int(tau * base_CV.shape[-1]))
    top_Ck = base_CV.topk(k).values
    threshold_C1 = torch.minimum(top_Ck[..., -1:], top_Ck[..., :1] + log(tau))
    neutral_CV = assistant_CV.clamp(min=assistant_CV.mean(-1, keepdim=True))
    return torch.where(base_CV < threshold_C1, neutral_CV, assistant_CV)


class DifferenceHead(nn.Module):
    """[…, n·D] hidden states of base and assistant, concatenated → the difference's logits […, V].

    A head that the two share is applied once, to both hidden states as one product (to their difference where no
    filter has to see the base's logits).
    """

    def __init__(self, config: LogitDifferenceConfig, models: list[Any]) -> None:
        super().__init__()
        self.config = config
        self.models: list[Any]
        # Not registered: the heads belong to the models, and a second name for a tensor would be saved twice.
        vars(self)["models"] = models
        self.widths = [m.get_output_embeddings().weight.shape[-1] for m in models]

    @property
    def weight(self) -> Tensor:
        """The base's head, whose first dimension is the vocabulary."""
        return self.models[0].get_output_embeddings().weight

    def forward(self, hidden: Tensor) -> Tensor:
        # Hidden states of several dtypes are concatenated in the widest of them.
        heads = [model.get_output_embeddings().weight for model in self.models]
        base, *others = (x.to(w.dtype) for x, w in zip(hidden.split(self.widths, dim=-1), heads, strict=True))
        head, weight, tau = Head.of(self.models[0]), self.config.weight, self.config.tau
        if self.config.layers is not None and head.linear is not None and head.softcap is None:
            change = others[0] - others[1] if self.config.relative else others[0]
            if tau == 0:
                return head.logits(base + weight * change)
            head = replace(head, forward=partial(linear_of_pair, self.models[0].get_output_embeddings()))
            base_V, change_V = head.logits(torch.stack([base, change])).unbind()
        else:
            base_V = head.logits(base)
            change_V = Head.of(self.models[1]).logits(others[0])
            if self.config.relative:
                change_V = change_V - Head.of(self.models[2]).logits(others[1])
        return base_V + weight * neutralise(change_V, base_V, tau)


class LogitDifferenceForCausalLM(PreTrainedModel, GenerationMixin):
    """Base minus assistant, decoding and scoring as any causal LM does.

    A checkpoint holds the assistant only and names the base: a LoRA adapter of the base's first layers is some
    megabytes. `from_pretrained` finds both again, and so does `AutoModelForCausalLM` once this module is imported.

    Args:
        config: what is subtracted from what; `base_config` is filled in from `base`.
        base: the model, changed in place: with `config.layers` its first layers get the adapter (zero at first).
        assistant, start: a separate assistant and, for Offset, what it was before training.
        lora: `peft.LoraConfig` of the adapter; its target modules are chosen here.
    """

    config: LogitDifferenceConfig
    base: Any
    assistant: Any
    start: Any
    generate: Any  # transformers types its `self` by a protocol that no model of its own fits

    config_class = LogitDifferenceConfig
    base_model_prefix = "base"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: LogitDifferenceConfig,
        base: PreTrainedModel,
        *,
        assistant: PreTrainedModel | None = None,
        start: PreTrainedModel | None = None,
        lora: Any = None,
    ) -> None:
        others = [model for model in (assistant, start) if model is not None]
        _check_vocabularies(base, others)
        config.base_config = base.config.to_dict()
        config.assistant_layers = sum(m.config.get_text_config().num_hidden_layers for m in others)
        super().__init__(config)
        # Masks that are made ahead of the forward (static cache) must be of the kind that the base's layers read.
        config.get_text_config()._attn_implementation = base.config._attn_implementation
        self.base = base.requires_grad_(False)
        self.generation_config = base.generation_config
        self.assistant = assistant
        self.start = start.requires_grad_(False) if start is not None else None
        self.pairs = None
        if assistant is None:
            assert config.layers is not None
            final_norm(base)  # there must be one
            lora.target_modules = linear_names(base, config.layers)
            lora.fan_in_fan_out = any(isinstance(module, Conv1D) for module in base.modules())
            base.add_adapter(lora, adapter_name=ASSISTANT)
            check_adapter(base, "method.forget")
            self.pairs = PairedLayers(base, config.layers, ASSISTANT)
        models = [base] * (3 if config.relative else 2) if assistant is None else [base, *others]
        self.difference = DifferenceHead(config, models)

    def get_input_embeddings(self) -> nn.Module:
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> DifferenceHead:
        return self.difference

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As any causal LM's; `logits` are the difference's, [B, T, V]."""
        inputs = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": use_cache, **kwargs}
        given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        run = self._run_pairs if self.pairs is not None else self._run_apart
        hidden, cache = run(given, past_key_values, inputs, keep)
        logits = self.difference(hidden)
        loss = None if labels is None else self.loss_function(logits, labels, logits.shape[-1])
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def load_assistant(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the assistant's trained weights: an adapter's, named as PEFT names them, or a whole model's."""
        if self.assistant is not None:
            self.assistant.load_state_dict(weights)
            return
        from peft import set_peft_model_state_dict

        adapter = {name.removeprefix("base_model.model."): x for name, x in weights.items()}
        report = set_peft_model_state_dict(self.base, adapter, adapter_name=ASSISTANT)
        lost = [name for name in report.missing_keys if ASSISTANT in name]
        if lost or report.unexpected_keys:
            raise UserError(
                f"model: the assistant's weights don't belong to its base (for example "
                f"{[*lost, *report.unexpected_keys][0]}); copy the checkpoint again, or train it anew."
            )

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  options of shards mean nothing here
        self, save_directory: str | Path, **_kwargs: Any
    ) -> None:
        """Write the configuration and the assistant; of the base only its name."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        # Servers that look a class up by its name in transformers find this one through the auto class.
        self.config.architectures = ["AutoModelForCausalLM"]
        classes = {"AutoConfig": LogitDifferenceConfig, "AutoModelForCausalLM": LogitDifferenceForCausalLM}
        self.config.auto_map = {auto: f"{REMOTE.stem}.{cls.__name__}" for auto, cls in classes.items()}
        self.config.save_pretrained(folder)
        if self.generation_config is not None:
            self.generation_config.save_pretrained(folder)
        with same_vocabulary():
            (self.base if self.assistant is None else self.assistant).save_pretrained(folder / ASSISTANT)
        names = ", ".join(cls.__name__ for cls in classes.values())
        (folder / REMOTE).write_text(f"from expunge.difference import {names}  # noqa: F401\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, path: str | Path, *_args: Any, **kwargs: Any) -> "LogitDifferenceForCausalLM":
        """Base and assistant of a checkpoint; keyword arguments (`dtype`, `device_map`, …) go to the base's loading.

        Raises `UserError` for a base that is no longer where the checkpoint says.
        """
        config = kwargs.pop("config", None) or LogitDifferenceConfig.from_pretrained(path)
        with_info = kwargs.pop("output_loading_info", False)
        for ours in ("trust_remote_code", "ignore_mismatched_sizes", "adapter_kwargs", "code_revision"):
            kwargs.pop(ours, None)
        check_settings(str(path), config)
        folder = Path(path) / ASSISTANT
        base = load_weights(config.base, merged=True, **kwargs)
        if config.layers is None:
            assistant = load_weights(folder, merged=True, **kwargs)
            start = load_weights(str(config.start), merged=True, **kwargs) if config.relative else None
            model = cls(config, base, assistant=assistant, start=start)
        else:
            from peft import PeftConfig

            model = cls(config, base, lora=PeftConfig.from_pretrained(str(folder)))
            model.load_assistant(assistant_weights(Path(path)))
        model = model.requires_grad_(False).eval()
        whole: dict[str, Any] = {"missing_keys": (), "unexpected_keys": (), "mismatched_keys": ()}
        return (model, whole) if with_info else model  # pyright: ignore[reportReturnType]

    def _run_pairs(
        self, given: dict[str, Any], cache: Cache | None, inputs: dict[str, Any], keep: Any
    ) -> tuple[Tensor, Cache | None]:
        assert self.pairs is not None
        with self.pairs.running(rows=next(x for x in given.values() if x is not None).shape[0]):
            out = self.base.get_decoder()(**given, past_key_values=cache, **inputs)
        assert self.pairs.base_BTD is not None and self.pairs.assistant_BTD is not None
        norm = final_norm(self.base)
        parts = [out.last_hidden_state[:, keep], norm(self.pairs.assistant_BTD[:, keep])]
        if self.config.relative:
            parts.append(norm(self.pairs.base_BTD[:, keep]))
        return torch.cat(parts, dim=-1), out.past_key_values

    def _run_apart(
        self, given: dict[str, Any], cache: Cache | None, inputs: dict[str, Any], keep: Any
    ) -> tuple[Tensor, Cache | None]:
        if cache is None and inputs["use_cache"]:
            cache = DynamicCache(config=self.config.get_text_config())
        if given["input_ids"] is None:
            raise ValueError("inputs_embeds are the base's own; a separate assistant needs input_ids.")
        parts, first = [], 0
        for model in self.difference.models:
            last = first + model.config.get_text_config().num_hidden_layers
            cached = Cache(layers=cache.layers[first:last]) if cache is not None else None
            parts.append(model.get_decoder()(**given, past_key_values=cached, **inputs).last_hidden_state[:, keep])
            first = last
        return torch.cat(parts, dim=-1), cache


def removal_of(path: str | Path) -> Literal["weights", "inference"]:
    """Whether the checkpoint has weights of its own, or an assistant beside the weights of another model."""
    return "inference" if isinstance(load_config(str(path)), LogitDifferenceConfig) else "weights"


def checkpoint_of(path: Path) -> tuple[Path, Any]:
    """(folder, configuration) of the difference that was saved in `path`, or in `path`/model as a run leaves it.

    Raises `UserError` where there is none.
    """
    whereabouts(path)
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            config = load_config(str(folder))
            if isinstance(config, LogitDifferenceConfig):
                check_settings(str(folder), config)
                return folder, config
    if not path.exists():
        raise UserError(f"{path} does not exist; give the folder that a run of ULD or Offset left.")
    raise UserError(f"{path} is not a checkpoint of ULD or Offset; give the folder that such a run left as model/.")


def check_settings(path: str, config: LogitDifferenceConfig) -> None:
    """Raise `UserError` for a checkpoint of a difference that says what can't be, or whose base is gone."""
    layers, numbers = config.layers, (config.weight, config.tau)
    right = {
        "base": isinstance(config.base, str) and config.base != "",
        "weight and tau": all(isinstance(x, int | float) and isfinite(x) for x in numbers) and 0 <= numbers[1] < 1,
        "layers": layers is None or (isinstance(layers, int) and layers > 0),
        "base_config": isinstance(config.base_config, dict),
        "start": config.start is None or isinstance(config.start, str),
    }
    if wrong := next((name for name, fine in right.items() if not fine), None):
        raise UserError(f"model: config.json of {path!r} has a {wrong} that can't be; copy the checkpoint again.")
    for name in (config.base, config.start):
        if name is not None and Path(name).is_absolute() and not Path(name).exists():
            raise UserError(f"{path}: its base {name} is gone; put it back, or change base in config.json.")
    if not (Path(path) / ASSISTANT).is_dir() and Path(path).is_dir():
        raise UserError(f"model: {path!r} lacks its folder {ASSISTANT}/; copy the checkpoint again.")
    if layers is not None:
        layer_count(load_config(config.base), layers)


def assistant_weights(path: Path) -> dict[str, Tensor]:
    """The assistant's weights in a checkpoint of the difference, for `load_assistant`."""
    folder = path / ASSISTANT
    adapter = folder / "adapter_model.safetensors"
    if adapter.exists():
        return load_file(adapter)
    return load_weights(folder).state_dict()


def _check_vocabularies(base: PreTrainedModel, others: list[PreTrainedModel]) -> None:
    size = vocabulary_size(base)
    for model in others:
        if (vocabulary := vocabulary_size(model)) != size:
            raise UserError(
                f"method.forget.assistant: its vocabulary has {vocabulary} tokens and the model's {size}; take an "
                f"assistant of the same family, with the same tokenizer."
            )


AutoConfig.register(LogitDifferenceConfig.model_type, LogitDifferenceConfig)
AutoModelForCausalLM.register(LogitDifferenceConfig, LogitDifferenceForCausalLM)
