"""Know what is secret, and mask it in whatever is written or shown: recipes, errors, log lines, pages.

A value is secret by the name that it stands under (`hub_token`, `password`, `OPENAI_API_KEY`), by its form (a key of a
known provider, the password in a URL), or because it has been given under such a name before. Texts of data are not
looked at: records and answers stay as they are.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any
from urllib.parse import quote, unquote

MASK = "***"
"""The text that replaces a secret."""

SHORTEST = 6
"""Characters of a value that is looked for in texts; a shorter one is masked only under its own name."""

_NAMES = re.compile(
    r"(?:^|_)(?:(?:api|access|secret|private|auth|account|signing)_?keys?|tokens?_secret|token|secret|\w*password|passwd"
    r"|passphrase|(?<=_)pwd|credentials?|authorization|bearer|sig|signature)$"
)
_HARMLESS = re.compile(r"(?:^|_)(?:bos|eos|unk|sep|pad|cls|mask|image|audio|video|begin|end|stop)_token$")
"""Tokens that are words of a vocabulary."""

_FORMS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-(?=[\w-]*\d)[\w-]{16,}|\bgh[opsru]_\w{16,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{16,}"
    r"|\bxox[abeprs]-[\w-]{10,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[\w-]{30,}|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"
    r"|(?<=Bearer )[\w+/=.~-]{6,}|(?<=Basic )[\w+/=]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
    re.DOTALL,
)
_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]*:/{1,2}[^\s/?#@:'\"]*:)([^\s@'\"]+)(?=@)", re.IGNORECASE)
_USER_ALONE = re.compile(r"(\bhttps?:/{1,2})([^\s/?#@:'\"]+)(?=@)", re.IGNORECASE)
_PAIRS = (
    re.compile(r"([?&;\s]|^)([\w.-]+)(=)([^\s&#;'\"]+)"),  # a query, or a connection string
    re.compile(r"(--)([\w.-]+)([ =])(\S+)"),  # a command
    re.compile(r"(['\"])([\w.-]+)(['\"]\s*:\s*['\"]?)([^'\",}\]]+)"),  # JSON, or a printed mapping
)
_YAML = re.compile(r"^([ \t-]*)([\w.-]+)(:[ \t]+)(\S.*)$", re.MULTILINE)

_given: set[str] = set()
"""Secrets that this process has been given."""


@cache
def is_secret(name: str) -> bool:
    """Whether a value under this name (the key of a recipe, a variable of the environment) is secret."""
    last = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(".")[2]).lower().replace("-", "_")
    return bool(_NAMES.search(last)) and not _HARMLESS.search(last)


def secret_name(tree: Any) -> str | None:
    """The first name in a tree of plain values that a secret stands under."""
    return next((name for name, _ in _leaves(tree) if is_secret(name)), None)


def remember(tree: Any) -> None:
    """Note every secret in a tree of plain values, or in a text that may hold URLs, for later texts."""
    for name, value in _leaves(tree):
        if is_secret(name):
            _note(value)
        elif isinstance(value, str) and "://" in value:
            for pattern in (_PASSWORD, _USER_ALONE):
                for match in pattern.finditer(value):
                    _note(match[2])


def given() -> frozenset[str]:
    """The secrets noted so far, for another process to note."""
    return frozenset(_given)


def note(values: frozenset[str]) -> None:
    """Note what `given` returned in another process."""
    _given.update(values)


def masked(tree: Any, *, secret: bool = False) -> Any:
    """A copy of a tree of plain values with every secret masked; `secret`: all of it is."""
    match tree:
        case Mapping():
            return {key: masked(value, secret=secret or is_secret(str(key))) for key, value in tree.items()}
        case list() | tuple():
            return [masked(value, secret=secret) for value in tree]
        case None | bool():
            return tree
        case str():
            return MASK if secret and tree else masked_text(tree)
    return MASK if secret else tree


def unmasked(tree: Any) -> Any:
    """A tree without the keys that were masked: they are given again, or not at all."""
    if not any(value == MASK and is_secret(name) for name, value in _leaves(tree)):
        return tree
    return _unmasked(tree)


def _unmasked(tree: Any) -> Any:
    match tree:
        case Mapping():
            return {key: _unmasked(value) for key, value in tree.items() if not (value == MASK and is_secret(str(key)))}
        case list():
            return [_unmasked(value) for value in tree]
    return tree


def masked_text(text: str) -> str:
    """A text to be shown, with every secret masked."""
    for value in sorted(_given | set(_environment()), key=len, reverse=True):
        text = text.replace(value, MASK)
    text = _FORMS.sub(MASK, text)
    text = _PASSWORD.sub(rf"\1{MASK}", text)
    text = _USER_ALONE.sub(rf"\1{MASK}", text)
    for pattern in _PAIRS:
        text = pattern.sub(_pair, text)
    return text


def masked_yaml(text: str) -> str:
    """`masked_text` of a YAML file, as earlier versions wrote them."""
    return masked_text(_YAML.sub(_pair, text))


class MaskedFormatter(logging.Formatter):
    """Log lines and their tracebacks without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return masked_text(super().format(record))


def _pair(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2]}{match[3]}{MASK}" if is_secret(match[2]) else match[0]


def _environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and is_secret(name):
            yield value


def _note(value: Any) -> None:
    if isinstance(value, str | int | float) and not isinstance(value, bool) and len(text := str(value)) >= SHORTEST:
        _given.update({text, quote(text, safe=""), unquote(text)})


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every value with the name that it stands under; what stands under a secret name is under that one.

    A tree from YAML may hold one part in many places, or itself; each part is looked at once.
    """
    seen: dict[tuple[int, bool], Any] = {}
    left: list[tuple[str, Any]] = [("", tree)]
    while left:
        name, value = left.pop()
        if hasattr(value, "model_dump") and not isinstance(value, type):
            value = value.model_dump(exclude_unset=True)
        if not isinstance(value, Mapping | list | tuple):
            yield name, value
        elif (id(value), is_secret(name)) not in seen:
            seen[id(value), is_secret(name)] = value  # held, so that no other part gets its id
            pairs = value.items() if isinstance(value, Mapping) else ((name, inner) for inner in value)
            left += [(name if is_secret(name) else str(key), inner) for key, inner in pairs]
