"""The folder of a checkpoint, checked without its weights: whatever can't be read or used is named."""

import json
import logging
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
)

from expunge.data.encode import prepare_tokenizer
from expunge.errors import UserError, first_line
from expunge.modeling.gguf import SUFFIX, is_gguf, unpacked
from expunge.system import hub, manifest
from expunge.system.digest import digest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

ADAPTER = "adapter_config.json"
"""The file that tells an adapter's folder from a model's."""

INDEX = "model.safetensors.index.json"
JSON_FILES = (
    *("config.json", "generation_config.json", ADAPTER, INDEX),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "adapter_model.bin")


def whereabouts(name: str | Path) -> str:
    """The full path of a folder, so that a checkpoint finds it from anywhere; a name on the hub as it is.

    Raises `UserError` for a path that the system can't follow.
    """
    try:
        return str(Path(name).resolve()) if Path(name).exists() else str(name)
    except (OSError, RuntimeError, ValueError) as error:
        shown = f"{str(name)[:60]}…" if len(str(name)) > 60 else str(name)
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"model: {shown!r} can't be looked up ({reason}); give a folder or a name on the hub."
        ) from error


def checkpoint_name(path: str) -> str:
    """The name of an unlearned checkpoint in results: its folder's, or that of its run where it is a run's model."""
    folder = Path(path)
    return folder.parent.name if folder.name == "model" and folder.parent.name else folder.name


def folder_of(name: str | Path) -> str:
    """The folder that a checkpoint is read from: what `whereabouts` says, or what a GGUF file is unpacked into."""
    path = whereabouts(name)
    return str(unpacked(Path(path))) if is_gguf(path) else path


def check_name(name: Any) -> None:
    """Raise `UserError` for what is neither a folder nor a name."""
    if not isinstance(name, str | Path):
        raise UserError(f"model: give a folder or a name on the hub, got {type(name).__name__} ({name!r:.60}).")


def is_adapter(name: str | Path) -> bool:
    return (Path(name) / ADAPTER).is_file()


def base_of(name: str | Path) -> str:
    """Folder or hub name of the model under the adapter in `name`, or `name` itself where there is no adapter.

    Raises `UserError` where the adapter does not say, or its base is gone.
    """
    if not is_adapter(name):
        return str(name)
    base = read_json(Path(name) / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"model: {Path(name) / ADAPTER} does not say which model it adapts; write base_model_name_or_path."
        )
    if Path(base).is_absolute() and not Path(base).exists():
        raise UserError(
            f"model: the base of the adapter {str(name)!r}, {base}, is gone; put it back, or change "
            f"base_model_name_or_path in {ADAPTER}."
        )
    if whereabouts(base) == whereabouts(name):
        raise UserError(f"model: the adapter {str(name)!r} names itself as its base; change base_model_name_or_path.")
    return base


def check_folder(name: str) -> None:
    """Raise `UserError` for a folder that holds no whole checkpoint; a name on the hub passes."""
    folder = Path(folder_of(name))
    if not folder.exists():
        # A name on the hub has one slash at most, and its owner is hardly a folder here.
        is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or ("/" in name and folder.parent.is_dir())
        if is_path or folder.is_symlink():
            raise UserError(f"model: folder {name!r} does not exist; give an existing folder or a name on the hub.")
        return
    try:
        names = [p.name for p in (*folder.iterdir(), *folder.glob("assistant/*"))] if folder.is_dir() else []
    except OSError as error:
        raise UserError(f"model: {name!r} can't be read ({error.strerror}); give another folder.") from error
    packed = [n for n in names if n.endswith(SUFFIX)]
    if packed and "config.json" not in names:
        raise UserError(f"model: {name!r} holds a GGUF file; give the file itself: {folder / packed[0]}.")
    if not any(n.endswith((".safetensors", ".bin", ".index.json")) for n in names):
        inside = " (did you mean its folder model/?)" if (folder / "model" / "config.json").is_file() else ""
        raise UserError(
            f"model: {name!r} holds no weights (*.safetensors); give the folder that save_pretrained wrote{inside}."
        )
    for part in (folder, folder / "assistant"):
        _check_files(part)


def _check_files(folder: Path) -> None:
    """Raise `UserError` for a file of a checkpoint that is cut off, no file, or not in its format."""
    for path in (folder / name for name in (*JSON_FILES, *WEIGHTS)):
        if path.exists() and not path.is_file():
            raise UserError(f"model: {path} is not a file; give the folder that save_pretrained wrote.")
    for path in (folder / name for name in JSON_FILES):
        if path.is_file():
            read_json(path)
    weights = [folder / name for name in WEIGHTS if name.endswith(".safetensors")]
    if (folder / INDEX).is_file():
        parts = read_json(folder / INDEX).get("weight_map")
        if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
            raise UserError(f"model: {folder / INDEX} does not say where each weight lies (weight_map); save it anew.")
        absent = sorted({part for part in parts.values() if not (folder / part).is_file()})
        if absent:
            raise UserError(
                f"model: {folder} lacks {len(absent)} of the files of its weights ({absent[0]}); copy all of them."
            )
        weights += sorted({folder / part for part in parts.values()})
    for path in weights:
        if path.is_file() and path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt"):
                    pass
            except Exception as error:
                raise UserError(
                    f"model: {path} is damaged ({_reason(error)}); copy it again from where it came from."
                ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The keys and values in a file of a checkpoint; raises `UserError` for a file without them."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"model: {path} is not JSON ({_reason(error)}); copy it again, or save the model anew."
        ) from error
    if not isinstance(tree, dict):
        raise UserError(f"model: {path} holds no keys and values; copy it again, or save the model anew.")
    return tree


def check_unchanged(name: str | Path) -> None:
    """Raise `UserError` for a file that is not as it was when the folder's manifest was written.

    A folder without a manifest of ours passes. Every file is read once in a process, and again when it has changed.
    """
    folder = Path(folder_of(name))
    if not folder.is_dir() or not manifest.is_sealed(folder):
        return
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if wrong := _changed(folder, tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files)):
        raise UserError(f"model: {wrong}; copy it again, or delete {folder / manifest.NAME} if the change is yours.")


@cache
def _changed(folder: Path, _files: tuple[Any, ...]) -> str | None:
    with suppress(ValueError):
        listed = json.loads((folder / manifest.NAME).read_bytes())
        if not (isinstance(listed, dict) and "files" in listed):
            return None  # another program's manifest
    return manifest.damage(folder, extra=False)


def load_config(name: str) -> Any:
    """The configuration of the model in `name`, or of an adapter's base.

    Raises `UserError` for what `check_folder` finds, and for a model that expunge can't train or measure.
    """
    check_folder(name)
    if is_adapter(name):
        return load_config(base_of(name))
    try:
        with asking_for(name):
            config = AutoConfig.from_pretrained(folder_of(name), trust_remote_code=False)
    except Exception as error:
        raise not_loaded(name, error) from error
    _check_supported(name, config)
    return config


def _check_supported(name: str, config: "PretrainedConfig") -> None:
    if (quantized := getattr(config, "quantization_config", None)) is not None:
        kind = (quantized if isinstance(quantized, dict) else vars(quantized)).get("quant_method")
        raise UserError(
            f"model: {name!r} is quantised ({getattr(kind, 'value', kind) or 'quantization_config'}), and such weights "
            f"are neither trained nor merged here; give the checkpoint that it was made from (model.lora.quantize "
            f"holds that in 4 bits)."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"model: {name!r} has an encoder ({config.model_type}); give a decoder-only language model.")
    encodes = type(config) in MODEL_FOR_MASKED_LM_MAPPING and getattr(config, "is_decoder", None) is False
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or encodes:
        raise UserError(
            f"model: {name!r} is not a causal language model ({config.model_type}); give one that writes its text from "
            f"left to right."
        )


def outline(config: "PretrainedConfig", **options: Any) -> Any:
    """The model of a configuration without weights. Raises `UserError` where none can be built."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, **options)
    except Exception as error:
        raise UserError(f"model: config.json describes no model that can be built ({_reason(error)}).") from error


def asking_for(name: str | Path) -> AbstractContextManager[None]:
    """The hub, within this context, where `name` is no folder here."""
    return nullcontext() if Path(name).exists() else hub.asked()


def load_tokenizer(name: str, config: "PretrainedConfig") -> Any:
    """The tokenizer in `name`, ready for use with a model of this configuration; raises `UserError`."""
    try:
        with asking_for(name):
            loaded = AutoTokenizer.from_pretrained(folder_of(name), trust_remote_code=False)
        tokenizer = prepare_tokenizer(loaded)
    except Exception as error:
        raise not_loaded(name, error) from error
    return fit_tokenizer(tokenizer, config)


def fit_tokenizer(tokenizer: "PreTrainedTokenizerBase", config: "PretrainedConfig") -> Any:
    """Hold a tokenizer to the tokens that the model has an embedding for.

    A padding token beyond them gives way to the end token, since padding is looked up like any other token. Special
    tokens that no template writes, such as those of pictures, may stay. Raises `UserError` for any other.
    """
    size = getattr(config.get_text_config(), "vocab_size", None)
    if size is None or len(tokenizer) <= size:
        return tokenizer
    name = tokenizer.name_or_path or "the tokenizer"
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= size}
    if tokenizer.pad_token in beyond and tokenizer.eos_token not in beyond:
        _warn_once(
            f"{name} pads with {tokenizer.pad_token!r} ({beyond.pop(tokenizer.pad_token)}), for which a model of "
            f"{size} tokens has no embedding; {tokenizer.eos_token!r} pads in its place"
        )
        tokenizer.pad_token = tokenizer.eos_token
    template, special = str(tokenizer.chat_template or ""), tokenizer.added_tokens_decoder
    written = (tokenizer.eos_token, tokenizer.bos_token)
    for token, i in sorted(beyond.items(), key=lambda item: item[1]):
        if not (i in special and special[i].special) or token in written or token in template:
            raise UserError(
                f"model: {name} has tokens for which the model has no embedding ({token!r} is {i}, and the model has "
                f"{size}); give the tokenizer that belongs to the model, or a model with more embeddings."
            )
    return tokenizer


@cache
def _warn_once(message: str) -> None:
    """Warn, however often the same tokenizer is loaded."""
    log.warning(message)


def stored_dtype(name: str | Path) -> Any:
    """The dtype in which the model in `name` (an adapter's base) is loaded by itself; `None` where it does not say."""
    if is_adapter(name):
        return stored_dtype(base_of(name))
    if (dtype := load_config(str(name)).dtype) is not None:
        return dtype
    path = Path(folder_of(name)) / "model.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        kinds = {file.get_tensor(key).dtype for key in list(file.keys())[:1]}
    return next((kind for kind in kinds if kind.is_floating_point), None)


def content_of(name: str | Path) -> str:
    """A digest of every file of the checkpoint in `name` (and of an adapter's base), or its commit on the hub.

    Every file of a folder is read once in a process, and again when it has changed.
    """
    folder = Path(folder_of(name))
    if not folder.is_dir():
        commit = getattr(load_config(str(name)), "_commit_hash", None)
        return f"{name}@{commit}"
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    entries = manifest.entries_once(folder, (file for file in files if file != manifest.NAME))
    below = content_of(base_of(name)) if is_adapter(name) else ""
    return digest([entries, below])


def not_loaded(name: str, error: Exception) -> UserError:
    """The error of a library as one sentence on the checkpoint that brought it about."""
    if isinstance(error, UserError):
        return error
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return UserError(
            f"model: {name!r} brings code of its own, which is not run here; give a model whose architecture is part "
            f"of transformers."
        )
    return UserError(
        f"model: {name!r} can't be loaded ({_reason(error)}); give a folder with config.json, weights and a tokenizer, "
        f"or a causal LM's name on the hub."
    )


def _reason(error: BaseException) -> str:
    """The first line of an error; of errors that say little by themselves, their kind too."""
    said, kind = first_line(error), type(error).__name__
    return said if said == kind or isinstance(error, OSError | ValueError | ImportError) else f"{kind} {said}"
