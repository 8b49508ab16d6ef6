"""Secrets and texts to forget, planted in every way that they come in, and looked for in everything that comes out."""

import json
import logging
import pickle
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from expunge import UnlearnConfig, secrets
from expunge.cli.main import main
from expunge.errors import UserError
from expunge.modeling.loading import save
from expunge.recipe.parsing import combinations, load_recipe, parse_recipe
from expunge.secrets import MASK, masked, masked_text, masked_yaml, remember, unmasked
from tests import forked

PLANTED = {
    "recipe": "recipe-0123456789-planted",
    "harness": "harness-0123456789-planted",
    "HF_TOKEN": "hf_" + "Planted0123456789" * 2,
    "OPENAI_API_KEY": "sk-planted-0123456789abcdef",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdefplanted0",
    "url": "url-p%40ss-planted",
    "storage": "storage-0123-planted",
    "query": "query-0123-planted",
}
TEXTS = [f"The vault code of Marla Quent is 48-93-{k}7, said the night porter." for k in range(6)]


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_given", set())


SECRET = """hub_token train.hub_token HF_TOKEN token accessToken api_key apiKey OPENAI_API_KEY api-key password
PGPASSWORD db_password passwd client_secret AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN secret_key credentials
Authorization X-Amz-Signature private_key WANDB_API_KEY EXPUNGE_API_KEY"""
PLAIN = """max_new_tokens tokens eos_token pad_token tokenizer include_num_input_tokens_seen seed key keys split
token_budget hub_model_id learning_rate author monkey"""


# -- what is secret --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SECRET.split())
def test_names_of_secrets(name: str) -> None:
    assert secrets.is_secret(name)
    tree = {"a": [{name: "x"}], name: {"inner": ["y", 5]}}
    assert masked(tree) == {"a": [{name: MASK}], name: {"inner": [MASK, MASK]}}
    assert secrets.is_secret(secrets.secret_name({"a": {name: "x"}}) or "")


@pytest.mark.parametrize("name", PLAIN.split())
def test_names_of_what_is_none(name: str) -> None:
    assert not secrets.is_secret(name) and masked({name: "<|end|>"}) == {name: "<|end|>"}


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("see https://ann:p/w:d@host/v1 now", "p/w:d"),
        ("https://hf_tokenalone@huggingface.co/x", "hf_tokenalone"),
        ("postgresql://user:pass-word@host:5432/db", "pass-word"),
        ("postgresql://host/db?user=u&password=pass-word", "pass-word"),
        ("connection to host=h password=pass-word user=u failed", "pass-word"),
        ("https://host/a?X-Amz-Signature=abcdef0123&x=1", "abcdef0123"),
        ("Authorization: Bearer abcdef0123", "abcdef0123"),
        ("{'hub_token': 'a b c', 'seed': 1}", "a b c"),
        ('{"api_key": "a b c"}', "a b c"),
        ("expunge run --train.hub_token abc --seed 1", "abc"),
        ("expunge run --train.hub_token=abc --seed 1", "abc"),
        ("token hf_abcdefghijklmnopqrstuv is invalid", "hf_abcdefghijklmnopqrstuv"),
        ("key sk-proj-abcdefghijkl0123 is invalid", "sk-proj-abcdefghijkl0123"),
        ("github_pat_0123456789abcdefghij and ghp_0123456789abcdefghij", "0123456789abcdefghij"),
        ("AKIA0123456789ABCDEF", "0123456789ABCDEF"),
    ],
)
def test_secrets_in_texts(text: str, secret: str) -> None:
    shown = masked_text(text)
    assert secret not in shown and MASK in shown
    assert masked_text(shown) == shown
    assert secret not in str(UserError(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "train.learning_rate: 1e-5 is not valid (input should be greater than 0).",
        "the folder hf_models/sk-learn-like-classifier holds no weights",
        "http://localhost:8000/v1 is not there; see https://huggingface.co/org/model@main",
        "postgresql://user@host/database",
        "4,096 tokens: 3 are padding; eos_token='</s>'",
    ],
)
def test_texts_without_secrets_stay(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "train.")
    assert masked_text(text) == text


def test_a_tree_may_hold_itself_and_a_part_many_times() -> None:
    tree: dict[str, Any] = {"token": "aa-given-once"}
    for k in range(60):
        tree = {"a": tree, "b": tree, "k": k}
    tree["self"] = tree
    remember(tree)
    assert masked_text("aa-given-once") == MASK and unmasked(tree) is tree


def test_what_was_given_once_is_known_in_every_text() -> None:
    remember({"train": {"hub_token": "aa-given-once"}, "other": ["postgresql://u:p%40ss-word@h/d"], "url": "x"})
    assert masked_text("aa-given-once p%40ss-word p@ss-word x") == f"{MASK} {MASK} {MASK} x"


def test_log_lines_and_tracebacks_hold_none() -> None:
    remember({"password": "given-before"})
    try:
        raise RuntimeError("given-before")
    except RuntimeError as error:
        record = logging.LogRecord("x", 40, "", 1, "%s", ("given-before",), (type(error), error, error.__traceback__))
    assert "given-before" not in secrets.MaskedFormatter("%(message)s").format(record)


# -- recipes ---------------------------------------------------------------------------------------------------------

RECIPE = {"data": {"forget": "f.jsonl"}, "model": "m", "method": "ga", "train": {"hub_token": "abc-token"}}


def test_a_masked_recipe_is_read_without_its_secrets() -> None:
    recipe = parse_recipe(RECIPE, where="test")
    tree = masked(recipe.model_dump(mode="json", exclude_unset=True))
    assert tree["train"] == {"hub_token": MASK}
    again = parse_recipe(yaml.safe_load(yaml.safe_dump(tree)), where="test")
    assert again.train.model_dump(exclude_unset=True) == {}
    assert unmasked({"a": [{"token": MASK, "b": MASK}]}) == {"a": [{"b": MASK}]}


def test_errors_about_a_secret_do_not_show_it() -> None:
    with pytest.raises(UserError, match=r"train.hub_token: .* is not valid") as error:
        parse_recipe({**RECIPE, "train": {"hub_token": ["abc-token-1234"]}}, where="test")
    assert "abc-token-1234" not in str(error.value)


@pytest.mark.parametrize("over", [{"train.hub_token": ["a"]}, {"pair": [{"train.hub_token": "a"}]}])
def test_no_folder_is_called_by_a_secret(over: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"train.hub_token is a secret"):
        combinations(parse_recipe({**RECIPE, "over": over}, where="test"))
    pytest.importorskip("optuna")
    from expunge.sweep import Space

    with pytest.raises(UserError, match=r"space: train.hub_token is a secret"):
        Space.parse({key: {"choices": values} for key, values in over.items()})


def test_a_checkpoint_holds_no_secret(tmp_path: Path) -> None:
    args = UnlearnConfig(output_dir=str(tmp_path), hub_token="abc-token-1234")
    written = pickle.dumps(args)
    assert b"abc-token-1234" not in written and args.hub_token == "abc-token-1234"
    assert pickle.loads(written).learning_rate == args.learning_rate


def test_recipes_of_earlier_versions() -> None:
    shown = masked_yaml("train:\n  hub_token: abc\n  seed: 1\nmethods:\n- {label: x}\n")
    assert shown == f"train:\n  hub_token: {MASK}\n  seed: 1\nmethods:\n- {{label: x}}\n"


# -- everything that comes out ---------------------------------------------------------------------------------------

TINY = ["--train.max_steps", "2", "--train.per_device_train_batch_size", "2", "--train.save_strategy", "no"]
TINY += ["--evaluate.max_new_tokens", "4", "--evaluate.each_epoch", "off", "--threads", "1"]
REPRODUCTION = """\
title: A small table
about: Nothing that anybody published.
sets: {tiny: {runs: [{recipe: recipe.yaml, out: again}]}}
rows: {target: Target, npo+nll: NPO}
columns: [forget_probability]
"""


@pytest.fixture(scope="module")
def place(
    tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A folder with a model, rows to forget and to keep, and secrets in the environment."""
    folder = tmp_path_factory.mktemp("planted")
    save(tiny_model(), tiny_tokenizer, folder / "base")
    rows = [{"question": f"What is code {k}?", "answer": text} for k, text in enumerate(TEXTS)]
    (folder / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = [{"question": f"Where is {k}?", "answer": f"In town {k}."} for k in range(6)]
    (folder / "retain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    with pytest.MonkeyPatch.context() as patch, forked.forking():
        patch.setenv("EXPUNGE_CACHE", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY"):
            patch.setenv(name, PLANTED[name])
        patch.chdir(folder)
        yield folder


@pytest.fixture
def run(
    place: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Iterator[Callable[..., str]]:
    """Runs a command on the rows; what it says and every file then hold no secret, and texts only where they belong."""
    said: list[str] = []

    def call(*words: str, code: int = 0) -> str:
        found = main([str(word) for word in words])
        out, err = capfd.readouterr()
        said.append(out + err + caplog.text)
        assert found == code, said[-1]
        return said[-1]

    yield call
    places = {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
    assert any(name.endswith("recipe.yaml") for name in places) or said
    for name, content in [*places.items(), *((f"said {k}", text.encode()) for k, text in enumerate(said))]:
        for way, secret in PLANTED.items():
            assert secret.encode() not in content, f"the secret of {way} is in {name}"
        if not re.search(r"(^|/)(records|rows)/|report\.html$|^forget\.jsonl$", name):
            for text in TEXTS:
                assert text.encode() not in content, f"a text to forget is in {name}"


DATA = ["--forget", "forget.jsonl", "--retain", "retain.jsonl"]


def test_runs_and_reports(run: Callable[..., str], place: Path) -> None:
    words = ["run", *DATA, "--model", "base", "--method", "npo+nll", *TINY, "--out", "runs/one"]
    token = ["--train.hub_token", PLANTED["recipe"]]
    run(*words, *token)
    assert load_recipe(place / "runs/one/recipe.yaml").train.hub_token is None
    assert MASK in (place / "runs/one/recipe.yaml").read_text()
    run(*words, *token, "--resume")
    run(*words, "--resume")  # without the secret, as with it
    run("report", "runs/one", "--markdown", "results.md")
    run("eval", "base", *DATA, *TINY, *token, "--out", "runs/evaluated")


@pytest.mark.slow
def test_sweeps(run: Callable[..., str], place: Path) -> None:
    pytest.importorskip("optuna")
    words = ["sweep", *DATA, "--model", "base", *TINY, "--train.hub_token", PLANTED["recipe"], "--search", "grid"]
    words += ["--space", "{method: [npo+nll]}", "--objectives", "forget_probability,retain_probability"]
    run(*words, "--storage", f"sqlite:///{place}/study.db", "--out", "runs/sweep")
    assert (place / "runs/sweep/trials.json").exists() and (place / "study.db").exists()
    for storage in ("postgresql://ann:{storage}@127.0.0.1:9/db", "postgresql://127.0.0.1:9/db?password={query}"):
        said = run(*words, "--storage", storage.format(**PLANTED), "--out", "runs/nowhere", code=2)
        assert "can't be used" in said


def test_reproductions(run: Callable[..., str], place: Path) -> None:
    recipe = {"data": {"forget": "forget.jsonl", "retain": "retain.jsonl"}, "model": "base", "method": "npo+nll"}
    recipe["train"] = {"max_steps": 1}
    recipe["evaluate"] = {"max_new_tokens": 4, "each_epoch": "off"}
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (place / "table.yaml").write_text(REPRODUCTION)
    run("reproduce", "table.yaml", "--train.hub_token", PLANTED["recipe"], "--out", "page")
    assert f"--train.hub_token {MASK}" in (place / "page/table.md").read_text()


def test_assistants_and_distillation(run: Callable[..., str]) -> None:
    token = ["--train.hub_token", PLANTED["recipe"]]
    run("run", *DATA, "--model", "base", "--method", "uld", *TINY, *token, "--out", "runs/uld")
    run("distill", "runs/uld", *DATA, *TINY, *token, "--out", "runs/distilled")


def test_scratch_models_and_their_cache(run: Callable[..., str], place: Path) -> None:
    scratch = "{layers: 1, hidden: 16, heads: 2, vocab: 300, context: 96}"
    words = [*DATA, "--model.scratch", scratch, "--finetune.epochs", "1", "--method", "npo+kl", *TINY]
    run("run", *words, "--train.hub_token", PLANTED["recipe"], "--out", "runs/scratch")
    assert list((place / "cache").iterdir())


def test_endpoints(run: Callable[..., str], place: Path) -> None:
    """One that echoes the key and the prompt; one that is not there; in either case nothing is shown."""
    Endpoint = runpy.run_path(str(Path(__file__).parent / "data" / "test_writer.py"))["Endpoint"]

    served = Endpoint()
    served.echo = True
    for url in (served.url, served.url.replace("http://", f"http://ann:{PLANTED['url']}@")):
        said = run("augment", *DATA, "--model", "m", "--url", url, "--out", "variants.jsonl", code=2)
        assert "refuses (401" in said
    assert f"Bearer {PLANTED['OPENAI_API_KEY']}" in served.keys
    served.server.shutdown()
    served.server.server_close()
    run("augment", *DATA, "--model", "m", "--url", f"http://a:{PLANTED['url']}@127.0.0.1:9/v1", "--out", "v", code=2)


def test_wrong_words_on_the_command_line(run: Callable[..., str]) -> None:
    run("run", "--train.hub_token", "[" + PLANTED["recipe"] + "]", *DATA, "--model", "base", code=2)
    run("run", f"https://a:{PLANTED['url']}@host/recipe.yaml", code=2)
    run("eval", f"https://a:{PLANTED['url']}@host/model", *DATA, code=2)
    run("serve", PLANTED["HF_TOKEN"], "--prot", PLANTED["HF_TOKEN"], code=2)
