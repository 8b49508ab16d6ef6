"""Cut a text of any script into words, so that texts can be compared whatever they are written in."""

import unicodedata

import regex

_UNSPACED = r"\p{Line_Break=Complex_Context}\p{Han}\p{Hiragana}\p{Katakana}"
"""Characters of scripts that put no spaces between words: Han and Kana, and those whose lines only a dictionary can
break (Thai, Lao, Khmer, Myanmar and others, Unicode Standard Annex 14)."""
_CHARACTER = rf"[{_UNSPACED}]\p{{M}}*"

_SINGLE = regex.compile(_CHARACTER, regex.V1)
_WORD = regex.compile(rf"{_CHARACTER}|[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]+", regex.V1)
_WORD_OR_MARK = regex.compile(rf"{_WORD.pattern}|([\p{{P}}\p{{S}}])\1*", regex.V1)
_PIECE = regex.compile(rf"{_CHARACTER}|[\S--[{_UNSPACED}]]+", regex.V1)
_INVISIBLE = regex.compile(r"[\p{Cf}--\u200b]", regex.V1)
"""Format characters (soft hyphens, joiners) are no part of a word; the zero width space stands between two."""


def words(text: str) -> list[str]:
    """The words of a text: runs of letters, marks and numbers; where a script has no spaces, each character.

    Upper and lower case are one (`str.casefold`), and so are composed and decomposed accents (NFC). Of an ASCII text
    these are the runs of letters and digits in lower case. Hangul is spaced, so its words are what spaces separate.

    >>> words("Ann's café, 1999")
    ['ann', 's', 'café', '1999']
    >>> words("阿达出生")
    ['阿', '达', '出', '生']
    """
    return _WORD.findall(_INVISIBLE.sub("", caseless(text)))


def placed(text: str) -> list[tuple[int, int]]:
    """Where the words of a text without format characters begin and end (`visible_only`), in order."""
    return [match.span() for match in _WORD.finditer(text)]


def visible_only(text: str) -> str:
    """The text without format characters: soft hyphens, joiners; a zero width space becomes a plain one."""
    return _INVISIBLE.sub("", text).replace("\u200b", " ")


def words_and_marks(text: str) -> list[str]:
    """The words of a text in their own case and the punctuation marks and symbols between them, runs of one as one."""
    plain = _INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    return [match[0] for match in _WORD_OR_MARK.finditer(plain)]


def pieces(text: str) -> list[str]:
    """Split at white space; in a script without spaces, at each character."""
    return _PIECE.findall(text)


def caseless(text: str) -> str:
    """The text with upper and lower case, composed and decomposed accents made one; white space stays."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def is_unspaced(word: str) -> bool:
    """Whether the word is a character of a script that puts no spaces between words."""
    return _SINGLE.match(word) is not None
