"""Load a causal LM or build one from scratch; its dtype, its LoRA adapter, its tokenizer; save it.

Knows nothing of data sets, objectives or recipes' other keys.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from expunge import manifest
from expunge.data.encode import prepare_tokenizer
from expunge.disk import partial_of, private, remove, writing
from expunge.errors import UserError

Dtype = Literal["auto", "float32", "bfloat16"]


class ScratchConfig(BaseModel):
    """A Llama built from nothing, with a byte-level BPE trained on the data it will learn.

    For the demo and for machines without a network; such a model knows only what it is taught.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(default=4, ge=1)
    hidden: int = Field(default=128, ge=8, description="width; must be divisible by heads")
    heads: int = Field(default=4, ge=1)
    vocab: int = Field(default=1024, ge=260, description="tokens of the BPE, 256 bytes and the specials included")
    context: int = Field(default=256, ge=16, description="longest sequence, tokens")

    @model_validator(mode="after")
    def _even_heads(self) -> "ScratchConfig":
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden is {self.hidden}, which is no even number of dimensions for {self.heads} heads")
        return self


class LoraConfig(BaseModel):
    """A LoRA adapter (PEFT) on every linear layer but the head; `quantize` holds these in 4 bits under it (QLoRA)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    r: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str | list[str] = "all-linear"
    quantize: Literal["nf4"] | None = Field(default=None, description="extra: expunge[lean]")

    def peft(self) -> Any:
        """The same as `peft.LoraConfig`."""
        from peft import LoraConfig as PeftLoraConfig

        return PeftLoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets,
            task_type="CAUSAL_LM",
        )


def load(
    path: str | Path, *, dtype: Dtype = "auto", attention: str | None = None, quantize: str | None = None
) -> tuple[Any, Any]:
    """(model, tokenizer) of any checkpoint of ours or any causal LM of the hub, ready for inference.

    A folder that holds a LoRA adapter gives its base model with the adapter on. `dtype="auto"` is the checkpoint's.
    `attention` is one of transformers' implementations; `quantize="nf4"` holds linear layers but the head in 4 bits
    (Dettmers et al. 2023, arXiv 2305.14314).
    Raises `UserError` for a folder without weights or an unknown name.
    """
    path = str(path)
    _check_folder(path)
    # Every process has the whole model until it trains; with DeepSpeed about, transformers would spread it out at once.
    unset_hf_deepspeed_config()
    import expunge.difference  # noqa: F401  makes transformers know our own kind of checkpoint

    options: dict[str, Any] = {"dtype": _torch_dtype(dtype)}
    if attention is not None:
        options["attn_implementation"] = attention
    if quantize is not None:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantize,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32 if dtype == "float32" else torch.bfloat16,
        )
    try:
        if (Path(path) / "adapter_config.json").is_file():
            from peft import AutoPeftModelForCausalLM

            model = AutoPeftModelForCausalLM.from_pretrained(path, **options)
        else:
            model = AutoModelForCausalLM.from_pretrained(path, **options)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _not_loaded(path, error) from error
    return model.eval(), prepare_tokenizer(tokenizer)


def load_for_training(
    path: str | Path,
    *,
    dtype: Dtype = "auto",
    lora: LoraConfig | None = None,
    pure_bf16: bool = False,
    attention: str | None = None,
) -> tuple[Any, Any]:
    """(model, tokenizer) with weights in a dtype that training can use.

    `auto` is float32 for full fine-tuning, whatever the checkpoint holds, since at unlearning's learning rates most
    updates of a bfloat16 weight are rounded away; under LoRA the frozen weights keep the checkpoint's dtype and the
    adapter is float32. Raises `UserError` for bfloat16 weights that would train, unless `pure_bf16` asks for it.
    """
    check_dtype(dtype, lora=lora is not None, pure_bf16=pure_bf16)
    quantize = lora.quantize if lora is not None else None
    dtype = "float32" if dtype == "auto" and lora is None else dtype
    return load(path, dtype=dtype, attention=attention, quantize=quantize)


def check_attention(config: Any, attention: str | None) -> None:
    """Raise `UserError` for an attention that this model, or this machine, does not have."""
    if attention is None:
        return
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    except (ValueError, ImportError) as error:
        raise UserError(f"model.attention: {str(error).strip().splitlines()[0]}") from error


def adapted_layers(model: nn.Module) -> list[nn.Linear]:
    """The linear layers under an adapter."""
    under = (getattr(module, "base_layer", None) for module in model.modules())
    return [layer for layer in under if isinstance(layer, nn.Linear)]


def bytes_saved(model: nn.Module) -> float:
    """Bytes that the linear layers under an adapter take less in NF4: half a byte a weight, and its share of scales."""
    weights = [layer.weight for layer in adapted_layers(model)]
    return sum(weight.numel() * (weight.itemsize - 0.5 - 1 / 64) for weight in weights)


def check_dtype(dtype: Dtype, *, lora: bool, pure_bf16: bool) -> None:
    """Raise `UserError` for bfloat16 weights that would train without `pure_bf16`."""
    if not lora and dtype == "bfloat16" and not pure_bf16:
        raise UserError(
            "model.dtype: bfloat16 weights lose most updates of full fine-tuning; use float32 (with train.bf16 for "
            "speed), or model.lora, or set model.pure_bf16 to accept it."
        )


def load_tokenizer_and_config(path: str | Path) -> tuple[Any, Any]:
    """(tokenizer, config) of what `load` would load, without its weights; raises the same errors."""
    path = str(path)
    _check_folder(path)
    try:
        adapter = Path(path) / "adapter_config.json"
        base = json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.is_file() else path
        import expunge.difference  # noqa: F401  as in `load`

        return prepare_tokenizer(AutoTokenizer.from_pretrained(path)), AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise _not_loaded(path, error) from error


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


def build_scratch(config: ScratchConfig, tokenizer: Any, *, seed: int) -> LlamaForCausalLM:
    """A randomly initialised Llama of the given size, float32; the same for the same seed."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(scratch_config(config, tokenizer))


def scratch_config(config: ScratchConfig, tokenizer: Any) -> LlamaConfig:
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
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def save(model: nn.Module, tokenizer: Any, path: Path) -> None:
    """Write model (or adapter) and tokenizer to `path`, as `transformers` reads them; what is there now is replaced.

    The folder shows under its name when it is whole, and is its owner's alone.
    """
    partial = partial_of(path)
    with private(), writing(path):
        remove(partial)
        manifest.begin(partial)
        model.save_pretrained(partial)  # pyright: ignore[reportCallIssue]
        tokenizer.save_pretrained(partial)
        manifest.seal(partial)
        remove(path)
        partial.replace(path)


def _check_folder(path: str) -> None:
    folder = Path(path)
    if not folder.exists():
        # A name on the hub has one slash at most, and its owner is hardly a folder here.
        if path.startswith((".", "/", "~")) or path.count("/") > 1 or ("/" in path and folder.parent.is_dir()):
            raise UserError(f"model: folder {path!r} does not exist; give an existing folder or a name on the hub.")
        return
    names = [p.name for p in (*folder.iterdir(), *folder.glob("assistant/*"))] if folder.is_dir() else []
    if not any(name.endswith((".safetensors", ".bin", ".index.json")) for name in names):
        inside = " (did you mean its folder model/?)" if (folder / "model" / "config.json").is_file() else ""
        raise UserError(
            f"model: {path!r} holds no weights (*.safetensors); give the folder that save_pretrained wrote{inside}."
        )


def _torch_dtype(dtype: Dtype) -> Any:
    return "auto" if dtype == "auto" else getattr(torch, dtype)


def _not_loaded(path: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
    return UserError(
        f"model: {path!r} can't be loaded ({reason}); give a folder with config.json, weights and a tokenizer, or a "
        f"causal LM's name on the hub."
    )


def parameter_count(model: nn.Module) -> int:
    """Distinct parameters, tied ones once."""
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


def describe(model: nn.Module) -> str:
    """One line for the log: class, parameters, trainable share, dtype."""
    total, trainable = parameter_count(model), sum(p.numel() for p in model.parameters() if p.requires_grad)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return json.dumps({"class": type(model).__name__, "parameters": total, "trainable": trainable, "dtype": dtype})
