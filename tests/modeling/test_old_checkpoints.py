"""Checkpoints written by earlier versions still load and compute the same.

`from_flat_modules/` is a ULD model and its base, as the last version without folders in the package wrote them.
Its code file imports `expunge.difference`. `BASE` stands for the base's path; the manifests were left out with it.
"""

import shutil
import sys
from pathlib import Path

import pytest
import torch

from expunge.modeling.loading import load
from tests import forked

LAST = [-5.742962837, -5.727066040, -5.756841183, -5.663748741, -5.719061852, -5.675157547, -5.668272495, -5.645047665]
"""Log-probabilities of the tokens 100 to 107 after the tokens 2 to 13, as that version computed them."""
BASE = [-5.863893986, -5.803148270, -5.681159973, -5.723872662, -5.590702057, -5.602051258, -5.545570374, -5.686405659]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(Path(__file__).with_name("from_flat_modules"), tmp_path, dirs_exist_ok=True)
    for config in (tmp_path / "uld/config.json", tmp_path / "uld/assistant/adapter_config.json"):
        config.write_text(config.read_text().replace("BASE", str(tmp_path / "base")))
    return tmp_path


@pytest.mark.parametrize(("name", "logps"), [("uld", LAST), ("base", BASE)])
def test_expunge_loads_it(folder: Path, name: str, logps: list[float]) -> None:
    if name == "uld":
        pytest.importorskip("peft", "0.21")  # older ones do not know every key of the adapter
    model, _ = load(folder / name, dtype="float32")
    with torch.no_grad():
        last = model(torch.arange(2, 14)[None]).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(last[100:108], torch.tensor(logps), atol=1e-6, rtol=0)


def test_transformers_loads_it_by_its_own_code_file(folder: Path) -> None:
    """In a process that has not imported expunge, as a server does."""
    program = f"""
import torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained({str(folder / "uld")!r}, trust_remote_code=True)
with torch.no_grad():
    print(model(torch.arange(2, 14)[None]).logits[0, -1].log_softmax(-1)[100:108].tolist())
"""
    done = forked.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    torch.testing.assert_close(torch.tensor(eval(done.stdout)), torch.tensor(LAST), atol=1e-6, rtol=0)
