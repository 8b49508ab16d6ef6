"""Without a hub, a name on it is refused, or found in the cache, at once."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from huggingface_hub import constants

from expunge import UserError, load
from expunge.data.formats import read_rows
from expunge.modeling.loading import check_weights, load_for_training, load_tokenizer_and_config, save
from expunge.system import hub


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that refuses every connection; whoever tries again waits in between."""

    def fail(seconds: float) -> NoReturn:
        raise AssertionError(f"tries again after {seconds} s")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", fail)
    hub.answers.cache_clear()
    yield
    assert not constants.HF_HUB_OFFLINE, "it is as it was"
    hub.answers.cache_clear()


@pytest.mark.parametrize("ask", [load, load_for_training, load_tokenizer_and_config, read_rows])
def test_a_name_that_is_not_here_is_refused_at_once(
    ask: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match="nobody-at-all/nothing") as error:
        ask("nobody-at-all/nothing")
    assert "\n" not in str(error.value)
    assert "http://127.0.0.1:9 does not answer" in caplog.text


def test_what_is_in_the_cache_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    repository, commit = tmp_path / "models--owner--tiny", "0" * 40
    save(tiny_model(), tiny_tokenizer, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert load("owner/tiny")[0].config.vocab_size == 292
    check_weights("owner/tiny")


def test_a_folder_needs_no_hub(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    save(tiny_model(), tiny_tokenizer, tmp_path / "model")
    load(tmp_path / "model")
    assert hub.answers.cache_info().misses == 0
