"""Plain text as a terminal and a line of Markdown show exactly it.

HTML's own escaping is the standard library's.
"""

import re
import unicodedata

_ENTITY = re.compile(r"&(?=#?\w+;)")
_MARKS = (
    r"[\\`*|~]"  # escapes, code, emphasis, cells, strikethrough
    r"|(?<![^\W_])_|_(?![^\W_])"  # an underscore between two letters shows as it stands
    r"|\](?=[(\[:])"  # links
    r"|^[#+=-](?![\d.])"  # headings, rules and lists
)
"""Characters that Markdown would not show as they are."""


def visible(text: str) -> str:
    """The text with what steers a terminal written out: control characters, and those that turn the reading order."""
    return "".join(c if c in "\n\t" or not _steers(c) else repr(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """The text without line breaks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def escaped(text: str, *, also: str = "") -> str:
    """Plain text as Markdown that shows exactly it, within a line: no HTML, link, emphasis, code or further cell."""
    text = _ENTITY.sub("&amp;", one_line(text)).replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(f"{_MARKS}|[{re.escape(also)}]" if also else _MARKS, r"\\\g<0>", text)
    return re.sub(r"^(\d{1,9})(?=[.)](?: |$))", r"\1\\", text)  # numbered lists


def code(text: str) -> str:
    """Plain text as code within a line, as `escaped` has it."""
    text = one_line(text)
    if not text:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def _steers(character: str) -> bool:
    return (
        unicodedata.category(character) in ("Cc", "Cs")
        or character in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )
