"""Fill a folder with the wheels that a GPU machine lacks which has torch, transformers, accelerate and peft already.

    python scripts/gpu_wheels.py FOLDER [--python 3.12] [--cuda 130]

The versions are those of constraints.txt. Of bitsandbytes the library of one CUDA alone is kept: all of them together
are ten times as large.
"""

import argparse
import base64
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "annotated-types", "bitsandbytes", "datasets", "dill", "gguf", "httpcore2", "httpx2", "multiprocess", "nltk",
    "pydantic", "pydantic-core", "torchao", "truststore", "typing-inspection", "xxhash",
)  # fmt: skip
RIVALS = ("liger-kernel==0.8.5", "cut-cross-entropy==25.1.1")
"""Fused losses that `expunge bench head` measures beside ours."""
SOURCES = ("rouge-score",)
"""Packages that the index has no wheel of: built here, for any Python."""
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (28, 27, 24, 17, 5)] + ["manylinux2014_x86_64", "manylinux1_x86_64"]


def pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words], check=True)


def versions() -> dict[str, str]:
    """Versions by package name, as constraints.txt pins them."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.strip().replace("_", "-").lower(): version.strip() for name, version in pins}


def strip_bitsandbytes(wheel: Path, cuda: str) -> None:
    """Leave out the libraries of other devices."""
    keep = f"libbitsandbytes_cuda{cuda}.so"
    with zipfile.ZipFile(wheel) as archive:
        if not any(name.endswith(keep) for name in archive.namelist()):
            sys.exit(f"gpu_wheels: {wheel.name} has no {keep}; name another --cuda.")
        files = {
            name: archive.read(name)
            for name in archive.namelist()
            if not (name.endswith(".so") and "_cpu" not in name and not name.endswith(keep))
        }
    record = next(name for name in files if name.endswith(".dist-info/RECORD"))
    lines = []
    for name, content in files.items():
        if name != record:
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(content)}\n")
    files[record] = "".join([*lines, f"{record},,\n"]).encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="version of the GPU machine's Python (default %(default)s)")
    parser.add_argument("--cuda", default="130", help="its CUDA, without the point (default %(default)s)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for old in args.folder.glob("*.whl"):
        old.unlink()
    pins = versions()
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", args.python]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    wanted = [f"{name}=={pins[name]}" for name in PACKAGES]
    pip("download", "--no-deps", *target, *platforms, "-d", str(args.folder), *wanted, *RIVALS)
    pip("wheel", "--no-deps", "-w", str(args.folder), *(f"{name}=={pins[name]}" for name in SOURCES))
    with tempfile.TemporaryDirectory() as folder:
        pip("wheel", "--no-deps", "-w", folder, str(ROOT))  # its metadata; the code is that of the checkout
        (made,) = Path(folder).glob("*.whl")
        (args.folder / made.name).write_bytes(made.read_bytes())
    strip_bitsandbytes(next(args.folder.glob("bitsandbytes-*.whl")), args.cuda)
    size = sum(wheel.stat().st_size for wheel in args.folder.glob("*.whl")) / 2**20
    print(f"{args.folder}: {len(list(args.folder.glob('*.whl')))} wheels, {size:.1f} MiB")


if __name__ == "__main__":
    main()
