"""Every tree of values is a recipe or one sentence that names the key; what is written reads back the same."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expunge.errors import UserError
from expunge.objectives import FORGET, RETAIN
from expunge.pipeline.inputs import check_recipe
from expunge.pipeline.run import run
from expunge.recipe.config import Recipe
from expunge.recipe.parsing import _keys, combinations, load_recipe, parse_recipe

BASE = (("model", "M"), ("forget", "f.jsonl"))
RECIPES = Path(__file__).parents[1] / "recipes"


def recipe(*overrides: tuple[str, str], base: tuple[tuple[str, str], ...] = BASE) -> Recipe:
    return load_recipe(None, (*base, *overrides))


def refusal(*overrides: tuple[str, str], base: tuple[tuple[str, str], ...] = BASE) -> str:
    with pytest.raises(UserError) as caught:
        recipe(*overrides, base=base)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.startswith("the command line: "), sentence
    return sentence.removeprefix("the command line: ")


def tree(found: Recipe) -> dict[str, Any]:
    return found.model_dump(mode="json", exclude_unset=True)


# -- what is understood ----------------------------------------------------------------------------------------------


def test_two_keys_are_a_recipe() -> None:
    assert tree(recipe()) == {"model": {"name": "M"}, "data": {"forget": "f.jsonl"}}


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda p: "-".join(p.relative_to(RECIPES).parts))
def test_every_recipe_is_one(path: Path) -> None:
    assert "methods" in load_recipe(path).model_fields_set


@pytest.mark.parametrize(
    ("forget", "retain"),
    [(name, retain) for name, cls in FORGET.items() for retain in (None, *RETAIN) if retain is None or not cls.alone],
)
def test_every_method_by_its_name(forget: str, retain: str | None) -> None:
    (method,) = recipe(("method", forget if retain is None else f"{forget}+{retain}")).methods
    brings = FORGET[forget]().own_retain
    shown = forget if retain is None or (brings and brings.title == retain) else f"{forget}+{retain}"
    assert method.name == shown
    assert method.forget.name == forget
    assert (method.retain.name if method.retain else None) == (retain or ("anchor" if forget == "rmu" else None))


def test_rmu_brings_an_anchor_at_its_own_layer() -> None:
    (method,) = recipe(("method", "rmu"), ("method.forget.layer", "3")).methods
    assert method.retain is not None and method.retain.model_dump()["layer"] == 3


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("1e-5", "train.learning_rate", 1e-5),
        ("2", "train.logging_steps", 2.0),
        ("no", "train.save_strategy", "no"),
        ("yes", "train.bf16", True),
        ("false", "train.bf16", False),
        ("off", "evaluate.each_epoch", "off"),
        ("null", "evaluate.each_epoch_limit", None),
        ("[q_proj, v_proj]", "model.lora.targets", ["q_proj", "v_proj"]),
        ("{num_cycles: 2}", "train.lr_scheduler_kwargs", {"num_cycles": 2}),
        ("2024", "data.retain", "2024"),
        ("no", "retrained", "no"),
        ("2024-11-21", "out", "2024-11-21"),
    ],
)
def test_values_on_the_command_line(text: str, key: str, value: Any) -> None:
    found: Any = tree(recipe((key, text)))
    for part in key.split("."):
        found = found[part]
    assert found == value


def test_a_number_may_be_a_models_name() -> None:
    assert recipe(base=(("model", "7"), ("forget", "8"))).model.name == "7"


def test_overrides_reach_into_a_short_form_in_any_order() -> None:
    keys = (("method.forget.beta", "0.5"), ("model.lora.r", "4"), ("method.retain.weight", "2"), ("method", "npo+kl"))
    for order in (keys, keys[::-1]):
        found = load_recipe(None, (*order, *BASE))
        assert tree(found)["methods"] == [
            {"forget": {"name": "npo", "beta": 0.5}, "retain": {"name": "kl", "weight": 2}}
        ]
        assert found.model.name == "M" and found.model.lora is not None and found.model.lora.r == 4
    assert recipe(("seed", "1"), ("seed", "2")).seed == 2, "the later counts"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


WRITTEN = "model: M\ndata: {forget: f}\nmethods: [{forget: {name: npo, beta: 0.2}, retain: kl}]\n"


def test_overrides_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, WRITTEN)
    assert tree(load_recipe(path, [("method.forget.beta", "0.3")]))["methods"] == [
        {"forget": {"name": "npo", "beta": 0.3}, "retain": {"name": "kl"}}
    ]
    assert [m.name for m in load_recipe(path, [("method", "ga")]).methods] == ["ga"]
    assert [m.name for m in load_recipe(path, [("methods", "[ga, wga+nll]")]).methods] == ["ga", "wga+nll"]
    several = write(tmp_path, WRITTEN.replace("retain: kl}", "retain: kl}, ga"))
    with pytest.raises(UserError, match="several methods"):
        load_recipe(several, [("method.forget.beta", "0.3")])


def test_what_is_written_reads_back_the_same() -> None:
    keys = [
        ("methods", "[{forget: {name: npo, beta: 0.5}, retain: kl, label: x, train: {learning_rate: 1e-6}}, rmu, ga]"),
        ("model.lora.r", "4"), ("train.save_strategy", "no"), ("train.lr_scheduler_type", "cosine"), ("seed", "7"),
        ("train.lr_scheduler_kwargs", "{num_cycles: 2}"), ("evaluate.each_epoch", "off"),
    ]  # fmt: skip
    found = recipe(*keys)
    text = yaml.safe_dump(tree(found), sort_keys=False)
    assert parse_recipe(yaml.safe_load(text), where="r.yaml") == found


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train.learning_rat", "train.learning_rate"),
        ("learning_rate", "train.learning_rate"),
        ("lerning_rate", "train.learning_rate"),
        ("trian.bf16", "train"),
        ("model.lora.zzz", None),
        ("epochs", "finetune.epochs"),
        ("method.forget.bta", "method.forget.beta"),
        ("evaluate.limits", "evaluate.limit"),
        ("sed", "seed"),
        ("methd", "method"),
        ("xyzzyq", None),
        ("", None),
    ],
)
def test_unknown_keys_get_the_nearest_right_one(key: str, nearest: str | None) -> None:
    sentence = refusal(("method", "npo+kl"), (key, "1"))
    assert sentence.startswith("unknown key ")
    assert f"Did you mean {nearest!r}?" in sentence if nearest else "Did you mean" not in sentence


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("train.learning_rate", "fast"), ("train.learning_rate", "0"), ("train.learning_rate", ".nan"),
        ("train.num_train_epochs", "-1"), ("train.per_device_train_batch_size", "0"),
        ("train.gradient_accumulation_steps", "0"), ("train.max_length", "1"), ("train.overflow", "cut"),
        ("train.reference", "cached"), ("train.report_to", "{a: 1}"), ("train.bf16", "maybe"),
        ("finetune.epochs", "0"), ("finetune.learning_rate", "-1"),
        ("evaluate.each_epoch", "often"), ("evaluate.limit", "0"), ("evaluate.max_new_tokens", "0"),
        ("model.lora.r", "0"), ("model.lora.dropout", "1"), ("model.lora", "4"), ("model.dtype", "float16"),
        ("seed", "-1"), ("seed", "4294967296"), ("seed", "zero"), ("train", "3"),
        ("method.forget.beta", "0"), ("method.forget.weight", "-1"), ("method.label", "../x"),
    ],
)  # fmt: skip
def test_wrong_values_are_shown_with_their_key(key: str, text: str) -> None:
    sentence = refusal(("method", "npo+kl"), (key, text))
    assert re.match(rf"{re.escape(key)}(: .* is not valid| must be .*, got )", sentence), sentence
    assert len(sentence) < 200, sentence


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([("forget", "f")], "the key 'model' is missing"),
        ([("model", "M")], "give either a benchmark or your own data"),
        ([*BASE, ("benchmark", "fable")], "give either a benchmark or your own data"),
        ([*BASE, ("model.scratch.layers", "1")], "model: give either a model's name or scratch"),
        ([("model", "M"), ("benchmark", "fabel")], "benchmark: unknown name 'fabel'. Did you mean 'fable'?"),
        ([("model", "M"), ("split", "forget01")], "benchmark: its name is missing"),
        ([*BASE, ("method", "nop+kl")], "method: 'nop' is not a forget objective. Did you mean 'npo'?"),
        ([*BASE, ("method", "npo+kll")], "method: 'kll' is not a retain objective. Did you mean 'kl'?"),
        ([*BASE, ("method.forget", "{name: nop}")], "method.forget: unknown name 'nop'. Did you mean 'npo'?"),
        ([*BASE, ("method.forget.beta", "1")], "method.forget: its name is missing"),
        ([*BASE, ("method", "{name: npo, beta: -1}")], "stand under forget: {forget: {name: npo, beta: 0.1}}"),
        ([*BASE, ("methods", "[ga, ga]")], "methods: ga is listed twice"),
        ([*BASE, ("methods", "[ga, {forget: npo, retian: kl}]")], "unknown key 'methods.1.retian'"),
        ([*BASE, ("methods", "[{forget: ga, label: target}]")], "the label target has a meaning of its own"),
        ([("modell", "M"), ("forget", "f")], "unknown key 'modell'. Did you mean 'model'?"),
        ([*BASE, ("train.bf16x", "1"), ("seeed", "1")], "(And 1 more.)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together(overrides: list[tuple[str, str]], says: str) -> None:
    assert says in refusal(*overrides, base=())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1\nb: 2", "r.yaml:2: not valid YAML"),
        ("model: M\nseed: 1\nseed: 2", "r.yaml:1: not valid YAML ('seed' twice)"),
        ("- 1", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        (b"\xff\xfe", "r.yaml: not a recipe ('utf-8' codec"),
        ("a: \0", "r.yaml: not valid YAML"),
        ("[" * 3000, "it is nested more than 60 levels deep"),
        ("a: " + "9" * 5000, "r.yaml: not a recipe"),
        ("a: &x [*x]", "not valid YAML (an alias holds itself)"),
        ("? [1]\n: 2", "r.yaml:1: not valid YAML"),
        ("!!python/object:os.system 1", "r.yaml:1: not valid YAML"),
        ("1: 2\nmodel: M", "r.yaml: 1: 1 is not valid (keys should be strings)"),
        ("model: M\ntrain: {bf17: true}", "r.yaml: unknown key 'train.bf17'. Did you mean 'train.bf16'?"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(write(tmp_path, text))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    write(tmp_path, WRITTEN)
    with pytest.raises(UserError, match=r"'.*rr.yaml' does not exist. Did you mean 'r.yaml'\?"):
        load_recipe(tmp_path / "rr.yaml")
    with pytest.raises(UserError, match="does not exist"):
        load_recipe(tmp_path / "nowhere" / "r.yaml")
    with pytest.raises(UserError, match="is not a file"):
        load_recipe(tmp_path)


def test_a_mistake_is_looked_for_where_it_was_made(tmp_path: Path) -> None:
    path = write(tmp_path, WRITTEN)
    with pytest.raises(UserError, match=r"^the command line: train\.learning_rate"):
        load_recipe(path, [("train.learning_rate", "x")])
    with pytest.raises(UserError, match=r"r\.yaml: methods\.0"):
        load_recipe(write(tmp_path, WRITTEN.replace("0.2", "-2")), [("train.learning_rate", "1")])
    with pytest.raises(UserError, match=r"^method\.forget\.beta\.x: beta is not a section"):
        load_recipe(path, [("method.forget.beta.x", "1")])


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.dates(),
    st.sampled_from(["fable", "tofu", "npo+kl", "ga", "rmu", "off", "no", "auto", "M", "f.jsonl"]),
)  # fmt: skip
NAMES = st.sampled_from(sorted({part for key in _keys() for part in key.split(".")} | {"method", "name"}))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
SECTIONS = st.fixed_dictionaries({}, optional={name: TREES for name in ("method", *Recipe.model_fields)})
EVERY_CHECK: Any = list(HealthCheck)
QUICKLY = settings(deadline=None, max_examples=100, suppress_health_check=EVERY_CHECK)


@QUICKLY
@given(SECTIONS | st.dictionaries(NAMES | st.integers(), TREES, max_size=5))
def test_any_tree_is_a_recipe_or_one_sentence(values: dict[Any, Any]) -> None:
    try:
        found = parse_recipe(values, where="r.yaml")
    except UserError as error:
        assert str(error).startswith("r.yaml: ")
    else:
        assert parse_recipe(tree(found), where="r.yaml") == found


@QUICKLY
@given(st.text(max_size=40) | SECTIONS.map(lambda v: yaml.safe_dump(v, allow_unicode=True)))
def test_any_text_is_a_recipe_or_one_sentence(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        load_recipe(path)
    except UserError as error:
        assert "any.yaml" in str(error) and "\n" not in str(error).strip()


@QUICKLY
@given(
    st.lists(
        st.tuples(NAMES | st.sampled_from(sorted(_keys())) | st.text(max_size=8), st.text(max_size=12)), max_size=4
    )
)
def test_any_overrides_are_a_recipe_or_one_sentence(overrides: list[tuple[str, str]]) -> None:
    try:
        assert isinstance(recipe(*overrides), Recipe)
    except UserError as error:
        assert str(error)


# -- sizes that nobody means -----------------------------------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "it holds more than 100000 values with its aliases written out"),
        ("a: &a [*a]\n", "an alias holds itself"),
        ("a: " + "[" * 200 + "]" * 200 + "\n", "it is nested more than 60 levels deep"),
        ("a: " + "{b: " * 500 + "1" + "}" * 500 + "\n", "it is nested more than 60 levels deep"),
    ],
    ids=["aliases of aliases", "an alias of itself", "deep", "deep mappings"],
)
def test_a_file_that_is_larger_than_it_looks_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=says) as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_aliases_are_read() -> None:
    found = load_recipe(
        None, [("methods", "[{forget: &f {name: npo, beta: 0.2}, label: a}, {forget: *f, label: b}]"), *BASE]
    )
    assert found.methods[0].forget == found.methods[1].forget


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ([("threads", "100000")], "threads must be at most"),
        ([("threads", "0")], "threads must be at least 1, got 0"),
        ([("method", "{forget: npo, label: " + "x" * 400 + "}")], "at most 50 characters"),
        ([("train.learning_rate", "-1")], "train.learning_rate must be more than 0, got -1"),
        ([("train.num_train_epochs", ".nan")], "train.num_train_epochs must be finite, got nan"),
        ([("train.num_train_epochs", "1e12")], "train.num_train_epochs must be at most 1000000"),
        ([("train.label_smoothing_factor", "0.1")], "train.label_smoothing_factor can't be 0.1: no objective smooths"),
        (
            [("method", "{forget: npo, train: {dataloader_drop_last: true}}")],
            "method.train.dataloader_drop_last can't be",
        ),
    ],
)
def test_a_value_out_of_bounds_names_its_limit(keys: list[tuple[str, str]], says: str) -> None:
    assert says in refusal(*keys)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ([("model", "{scratch: {vocab: 1000000000000}}")], "model.scratch: 2.6e+14 parameters"),
        ([("model", "{scratch: {layers: 1000000000000}}")], "GiB to train and this machine has"),
        ([("train.max_steps", "0")], "train.max_steps must be at least 1, or -1"),
        ([("train.warmup_steps", "3")], "train.warmup_steps does nothing without another lr_scheduler_type"),
        ([("method", "{forget: npo, train: {optim: sgdd}}")], "train.optim: 'sgdd' is not known. Did you mean 'sgd'?"),
        ([("train.report_to", "wandbb")], "train.report_to: wandbb is not supported"),
        ([("train.eval_steps", "3")], "train.eval_steps does nothing without eval_strategy: steps"),
        (
            [("train.eval_on_start", "true"), ("evaluate.utility_budget", "0.9")],
            "train.eval_on_start: a utility budget",
        ),
    ],
)
def test_what_the_recipe_tells_is_checked_before_its_data(keys: list[tuple[str, str]], says: str) -> None:
    """Neither the model nor the file exists."""
    base = [pair for pair in BASE if pair[0] not in dict(keys)]
    with pytest.raises(UserError, match=re.escape(says)):
        run(load_recipe(None, [*base, *keys]))


@pytest.mark.parametrize("launcher", ["FSDP", "DEEPSPEED"])
@pytest.mark.parametrize("method", ["uld", "offset-npo+nll", "uld_distilled"])
def test_an_assistant_is_not_taken_apart(monkeypatch: pytest.MonkeyPatch, launcher: str, method: str) -> None:
    check_recipe(recipe(("method", method)))
    monkeypatch.setenv(f"ACCELERATE_USE_{launcher}", "true")
    with pytest.raises(UserError, match="trains an assistant on the base model's own weights"):
        check_recipe(recipe(("method", method)))


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda p: "-".join(p.relative_to(RECIPES).parts))
def test_the_settings_of_every_recipe_can_be(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_recipe(path)
    if "optim" in found.train.model_fields_set:
        pytest.importorskip("torchao")
    check_recipe(found.model_copy(update={"evaluate": found.evaluate.model_copy(update={"harness": None})}))


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ("{seed: [1, 2, 1]}", "over: two runs would be called seed=1"),
        ("{data.forget: [a/b, a_b]}", "over: two runs would be called forget=a_b"),
        (
            f"{{seed: {list(range(200))}, train.data_seed: {list(range(200))}}}",
            "over: there must be at most 10000 runs",
        ),
    ],
)
def test_runs_of_one_name_and_too_many_are_refused(over: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        combinations(recipe(("over", over)))


def test_a_folder_of_many_words_gets_a_name_that_fits() -> None:
    """Two names that begin alike stay two."""
    long = ["x" * 400 + end for end in "ab"]
    names = [name for name, _ in combinations(recipe(("over", f"{{data.forget: {long}}}")))]
    assert len(set(names)) == 2 and all(len(name.encode()) <= 200 for name in names)
