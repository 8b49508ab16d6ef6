"""A model sharded over two ranks (FSDP2) takes the steps of a whole one, whatever is asked of its reference."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.models import save

CASES = {
    "unilogit+nll": ("full", "lora"),
    "npo+kl": ("full", "lora"),
    "undial+kl": ("full", "lora"),
    "rmu+anchor": ("full",),
    "uld": ("assistant",),
}
"""Objectives, and what of the model trains."""

KINDS = {"full": ("cached_hidden", "frozen_copy"), "lora": ("cached_hidden", "adapter_off"), "assistant": ("auto",)}

SCRIPT = """
import json, os, sys, torch
from contextlib import nullcontext
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from expunge import load, objectives
from expunge.bench.training import assistant
from expunge.data.encode import Encoded
from expunge.data.pairs import Collator, Role, Sets
from expunge.logprobs import decoder_layers
from expunge.models import LoraConfig
from expunge.objectives import FORGET, RETAIN, ULD, Uniform
from expunge.reference import build_reference
from expunge.signals import Share, gather_signals

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
generator = torch.Generator().manual_seed(0)
rows = [Encoded(tuple(torch.randint(5, 200, (9 + i,), generator=generator).tolist()), 4) for i in range(8)]
sets = Sets(forget=rows[:4], retain=rows[4:])
collate = Collator(sets, 0)


def steps(method, trains, kind, sharded):
    "The weights that two steps of SGD leave, whole."
    model, _ = load(sys.argv[1], dtype="float32")
    torch.manual_seed(0)  # adapters begin at random
    if method == "uld":
        objective, retain = ULD(), Uniform(weight=5.0)
        model = assistant(model)
    else:
        forget, kept = method.split("+")
        objective = FORGET[forget](**({"layer": 1} if forget == "rmu" else {}))
        retain = RETAIN[kept](**({"layer": 1} if kept == "anchor" else {}))
    if trains == "lora":
        from peft import get_peft_model
        model = get_peft_model(model, LoraConfig(r=2).peft())
    if trains != "full":  # an adapter that does nothing yet would make its reference the model itself
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.05)
    needs = {Role.FORGET: objective.needs, Role.REFUSAL: objectives.Needs(), Role.RETAIN: retain.needs}
    wanted = objective.needs | retain.needs
    start = model.disable_adapter() if trains == "lora" else nullcontext()
    with start:
        reference = build_reference(model, needs, sets, pad_token_id=0, kind=kind) if wanted.reference else None
    began = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    if sharded:
        for layer in decoder_layers(model):
            fully_shard(layer)
        fully_shard(model)
    mine = range(rank, 4, 2) if sharded else range(4)
    batch = collate([[(Role.FORGET, i), (Role.RETAIN, i)] for i in mine])
    count = {role: sum(len(e) - e.start for e in sets.of(role)) for role in (Role.FORGET, Role.RETAIN)}
    ranks = 2 if sharded else 1  # gradients are averaged over them
    trained = [p for p in model.parameters() if p.requires_grad]
    for _ in range(2):
        terms = ((objective, Role.FORGET), (retain, Role.RETAIN))
        shares = {r: Share(o, 1 / (count[r] if o.per == "token" else 4)) for o, r in terms}
        signals = gather_signals(model, batch, needs, reference, None, shares)
        loss = sum(s.objective.weight * s.term(signals[r]) for r, s in shares.items()) * ranks
        loss.backward()
        with torch.no_grad():
            for p in trained:
                if p.grad is not None:
                    p -= 0.1 * p.grad
                    p.grad = None
    ended = [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in trained]
    assert max((a - b).abs().max().item() for a, b in zip(began, ended)) > 1e-4
    return ended


for method, trains, kind in json.loads(sys.argv[2]):
    before = steps(method, trains, kind, False)
    after = steps(method, trains, kind, True)
    off = max((a - b).abs().max().item() for a, b in zip(before, after))
    if rank == 0:
        print("RESULT", method, trains, kind, off, flush=True)
torch.distributed.barrier()
os._exit(0)  # torch's teardown of gloo threads aborts now and then, after everything has been done
"""


@pytest.mark.slow
def test_sharded_steps_are_whole_steps(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    cases = [(method, trains, kind) for method, ways in CASES.items() for trains in ways for kind in KINDS[trains]]
    save(tiny_model(layers=4), tiny_tokenizer, tmp_path / "model")
    script = tmp_path / "steps.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, str(tmp_path / "model"), json.dumps(cases)],
        capture_output=True, text=True, env=environment, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    found = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert [tuple(case[:3]) for case in found] == cases
    assert max(float(case[3]) for case in found) < 1e-5, found
