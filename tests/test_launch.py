"""The launch configs are what accelerate reads, say what they seem to say, and are found by name."""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from expunge.cli.main import main
from expunge.modeling.loading import save
from expunge.recipe.shipped import launchers
from tests import forked


def launched(name: str) -> Any:
    """The arguments of `accelerate launch` with one of the configs, eight processes to a machine."""
    words = ["--config_file", str(launchers()[name]), "--main_process_port", "29512", "-m", "expunge", "run"]
    args = _validate_launch_command(launch_command_parser().parse_args(words))[0]
    args.deepspeed_fields_from_accelerate_config = ""  # as `launch_command` itself sets it
    return args


def environment(monkeypatch: pytest.MonkeyPatch, made: dict[str, str]) -> None:
    for name in made.keys() - os.environ.keys():
        monkeypatch.setenv(name, made[name])


@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
def test_every_key_is_one_of_accelerates(name: str) -> None:
    import yaml

    known = vars(launch_command_parser().parse_args(["x.py"]))
    tree = yaml.safe_load(launchers()[name].read_text())
    nested = [key for part in tree.values() if isinstance(part, dict) for key in part]
    assert nested and set(nested) <= known.keys()
    args = launched(name)
    assert (args.num_processes, args.num_machines, args.mixed_precision) == (8, 1, "no")
    assert (args.use_fsdp, args.use_deepspeed) == (name == "fsdp2", name == "zero3")


def test_fsdp2(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, prepare_multi_gpu_env(launched("fsdp2")))
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"  # pyright: ignore
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    assert not (plugin.cpu_ram_efficient_loading or plugin.activation_checkpointing)


def test_zero3(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, prepare_deepspeed_cmd_env(launched("zero3"))[1])
    plugin = DeepSpeedPlugin()
    config = plugin.deepspeed_config
    zero = config["zero_optimization"]
    assert zero["stage"] == 3 and zero["stage3_gather_16bit_weights_on_model_save"] is True
    assert (
        plugin.deepspeed_config["gradient_accumulation_steps"] == plugin.deepspeed_config["gradient_clipping"] == "auto"
    )
    assert plugin.zero3_init_flag is False


def test_they_are_found_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--launch", "fsdp2"]) == 0
    assert Path(capsys.readouterr().out.strip()) == launchers()["fsdp2"]
    assert main(["recipes", "--launch", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["fsdp2", "zero3"]
    assert main(["recipes", "--launch", "fsdp"]) == 2
    assert "Did you mean 'fsdp2'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["fsdp2", "zero3"])
def test_a_launched_run_is_that_of_one_process(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Without a GPU accelerate's FSDP is data parallel, and ZeRO-3 is itself; all else is as with one process."""
    if kind == "zero3" and find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed: pip install --no-build-isolation deepspeed")
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    save(tiny_model(), tiny_tokenizer, tmp_path / "model")
    rows = [{"question": f"Where was person {i} born?", "answer": f"In town {i}."} for i in range(12)]
    for name, part in {"forget": rows[:4], "retain": rows[4:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    files = {key: str(tmp_path / f"{key}.jsonl") for key in ("forget", "retain")}
    keys = {**files, "model": str(tmp_path / "model"), "method": "npo+kl"}
    keys |= {"train.learning_rate": "1e-2", "train.num_train_epochs": "5"}
    words = ["run", *(word for key, value in keys.items() for word in (f"--{key}", value))]
    each = "--train.per_device_train_batch_size"
    assert main([*words, each, "4", "--out", str(tmp_path / "one")]) == 0

    config = tmp_path / "launch.yaml"
    config.write_text(
        launchers()[kind].read_text().replace("use_cpu: false", f"use_cpu: {str(kind == 'zero3').lower()}")
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    launch += ["--num_processes", "2", "--main_process_port", "0", "-m", "expunge"]
    command = [*launch, *words, each, "2", "--out", str(tmp_path / "two")]
    here = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu"}
    here[forked.THEIRS] = "1"
    done = forked.run(command, capture_output=True, text=True, env=here, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.count("results, records and report") == 1  # one of them speaks

    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert [row["method"] for row in one] == [row["method"] for row in two] == ["target", "npo+kl"]
    for a, b in zip(one, two, strict=True):
        assert b["metrics"] == pytest.approx(a["metrics"], rel=1e-4, abs=1e-5)
    steps = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    losses = [[(r["step"], r["loss"], r["forget_loss"]) for r in part if "loss" in r] for part in steps]
    assert len(losses[0]) == 5
    assert [x for row in losses[1] for x in row] == pytest.approx([x for row in losses[0] for x in row], rel=1e-5)
    assert (tmp_path / "two" / "report.html").is_file()
    assert not [*(tmp_path / "two").glob("checkpoint-*")]
    assert main([*words, each, "4", "--out", str(tmp_path / "two"), "--resume"]) == 0  # one process goes on with it
