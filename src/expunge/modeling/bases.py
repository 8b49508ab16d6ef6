"""The weights that a checkpoint stands on: their sums, written beside an adapter and compared when it is loaded."""

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

from expunge.errors import UserError
from expunge.modeling.checkpoint import ADAPTER, read_json, whereabouts
from expunge.system import manifest

log = logging.getLogger(__name__)

NAME = "base.json"
"""The file beside an adapter, or a difference, that holds the sums of its base's weights."""


def bases(folder: Path) -> dict[str, Path]:
    """The folders, or files, of the models that the checkpoint in `folder` stands on, by the key that names each."""
    names: dict[str, Any] = {}
    if (folder / ADAPTER).is_file():
        names = {"base_model_name_or_path": read_json(folder / ADAPTER).get("base_model_name_or_path")}
    elif (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        if config.get("model_type") == "logit_difference":
            names = {key: config.get(key) for key in ("base", "start")}
    paths = {key: Path(whereabouts(name)) for key, name in names.items() if isinstance(name, str) and name}
    return {key: path for key, path in paths.items() if path.exists()}


def record(folder: Path) -> None:
    """Write the sums of the weights that a checkpoint stands on, as far as they lie here.

    And whether the folder is to be sealed, so that a manifest that is gone is missed.
    """
    if weights := {key: weights_in(path) for key, path in bases(folder).items()}:
        contents = {"sealed": manifest.is_begun(folder), "weights": weights}
        (folder / NAME).write_text(json.dumps(contents, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def check_bases(name: str | Path) -> None:
    """Raise `UserError` for a checkpoint of ours whose base holds other weights now than when it was saved."""
    folder = Path(whereabouts(name))
    if not (folder / NAME).is_file():
        return
    recorded = read_json(folder / NAME)
    if recorded.get("sealed") and not manifest.is_sealed(folder):
        _warn_once(
            f"{folder} was saved by expunge and has no {manifest.NAME} now, so its files may be others than were saved"
        )
    then = recorded.get("weights", {})
    for key, path in bases(folder).items():
        if key in then and then[key] != weights_in(path):
            raise UserError(
                f"model: {str(name)!r} was trained on other weights than its base {path} holds now; put those back, or "
                f"delete {NAME} and {manifest.NAME} in {folder} if the change is yours."
            )


def weights_in(folder: Path) -> manifest.Entries:
    """Size and SHA-256 sum of each file that decides on the weights in a folder (or is one); read once in a process."""
    if folder.is_file():
        return manifest.entries_once(folder.parent, [folder.name])
    paths = (path for part in (folder, folder / "assistant") for path in sorted(part.glob("*")) if path.is_file())
    files = [path for path in paths if path.suffix == ".safetensors" or _is_pickled(path) or path.name == ADAPTER]
    return manifest.entries_once(folder, (str(file.relative_to(folder)) for file in files))


def _is_pickled(path: Path) -> bool:
    return path.suffix == ".bin" and path.name.startswith(("pytorch_model", "adapter_model"))


@cache
def _warn_once(message: str) -> None:
    log.warning(message)
