"""The persons of a request: names, other names, identifiers and a text, read from a YAML file.

Every value is text, whatever it looks like: customer number 0471 keeps its zero.
"""

from pathlib import Path
from typing import Any

import regex
import yaml
from pydantic import Field, field_validator, model_validator

from expunge.data.files import local_path, read_text
from expunge.errors import UserError, first_line
from expunge.system.options import Options

SHORTEST = 4
"""Letters and digits of an identifier; a shorter one stands in many rows by chance."""
MOST_BYTES = 1_000_000
_LETTER = regex.compile(r"[\p{L}\p{N}]")


class Person(Options):
    """A person, as a letter names her. Use when rows about her are looked for.

    name         the name as it is usually written
    aliases      other names: maiden name, nickname, pen name
    identifiers  what stands for her alone: e-mail address, customer number, telephone number
    text         something that was written about her, of which rows may be copies
    """

    name: str = Field(description="as it is usually written")
    aliases: tuple[str, ...] = Field(default=(), description="other names: maiden name, nickname, pen name")
    identifiers: tuple[str, ...] = Field(default=(), description="e-mail address, customer number, telephone number")
    text: tuple[str, ...] = Field(default=(), description="what was written about her; rows may be copies of it")

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, given: Any) -> Any:
        """One text may stand in place of a list, and `names` in place of a name and aliases."""
        if not isinstance(given, dict):
            return given
        given = dict(given)
        names = given.pop("names", None)
        if isinstance(names, list) and names and "name" not in given:
            given["name"], *more = names
            given["aliases"] = [*more, *_listed(given.get("aliases", []))]
        elif names is not None:
            raise ValueError("names is a list, and takes the place of name; give one of the two")
        for key in ("aliases", "identifiers", "text"):
            given[key] = [value for value in _listed(given.get(key, [])) if value != ""]
        return given

    @field_validator("name", "aliases")
    @classmethod
    def _named(cls, value: Any) -> Any:
        for name in (value,) if isinstance(value, str) else value:
            if len(_LETTER.findall(name)) < 2 and not regex.search(r"\p{Han}", name):
                raise ValueError(f"a name must have at least 2 letters, got {name[:40]!r}")
        return value

    @field_validator("identifiers")
    @classmethod
    def _telling(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for identifier in value:
            if len(_LETTER.findall(identifier)) < SHORTEST:
                raise ValueError(
                    f"an identifier must have at least {SHORTEST} letters or digits, got {identifier[:40]!r}; write it "
                    "with the words around it, such as 'customer 17'"
                )
        return value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def read_people(source: str | Path) -> list[Person]:
    """The person, or the list of persons, in a YAML file.

    Raises `UserError` for a file that can't be read or is no YAML, for an unknown key, and for two persons of one name.
    """
    path = local_path(source, "who")
    if not path.is_file():
        raise UserError(f"who: {path} is no file; write the person's names in it, such as name: Ada Quill.")
    text = read_text(path)
    if len(text) > MOST_BYTES:
        raise UserError(f"who: {path} has {len(text):,} characters; give one of at most {MOST_BYTES:,}.")
    try:
        given = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"who: {path} is not valid YAML ({first_line(error)}); mend it.") from None
    listed = given if isinstance(given, list) else [given]
    if not listed or not all(isinstance(each, dict) for each in listed):
        raise UserError(f"who: {path} holds no person; write name: Ada Quill, or a list of such entries.")
    people: list[Person] = []
    for each in listed:
        try:
            people.append(Person(**{str(key): value for key, value in each.items()}))
        except UserError as error:
            raise UserError(f"who: {path}: {str(error).removeprefix('Person: ')}") from None
    names = [person.name for person in people]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"who: {path} has two persons called {twice!r}; give the second another name, and this one as "
                        "an alias.")  # fmt: skip
    return people


class _Loader(yaml.BaseLoader):
    """Reads every value as text, and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(problem=f"{twice!r} twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)
