"""The files of a public data set: in a folder of the user's, or else on the hub."""

from dataclasses import dataclass, replace
from pathlib import Path

from expunge.data.files import SourceRecord, local_path, read_records
from expunge.errors import UserError


@dataclass(frozen=True)
class Source:
    """Where a data set's files are read from. Use when a benchmark comes from the hub and may lie in a folder, too.

    title    name of the data set in errors
    hub_id   name of the data set on the hub
    folder   folder that holds its files; `None` for the hub
    remedy   what to do about a file that the folder does not have
    """

    title: str
    hub_id: str
    folder: Path | None
    remedy: str

    @classmethod
    def at(
        cls, path: str | Path | None, *, title: str, hub_id: str, remedy: str, key: str = "benchmark.path"
    ) -> "Source":
        """The folder that a person names under a recipe's `key`, or the hub where it is `None`.

        Raises `UserError` for what can be no path.
        """
        return cls(title, hub_id, None if path is None else local_path(path, key), remedy)

    @property
    def place(self) -> Path | str:
        """The folder, or the hub's name of the data set."""
        return self.hub_id if self.folder is None else self.folder

    def within(self, name: str) -> "Source":
        """The folder of that name in the folder; the hub stays the hub."""
        return self if self.folder is None else replace(self, folder=self.folder / name)

    def has(self, file: str) -> bool:
        """Whether the folder has a file; the hub has all of them."""
        return self.folder is None or (self.folder / file).is_file()

    def locate(self, file: str, config: str = "") -> str | Path:
        """The path of a file in the folder, or `config` on the hub, as `read_rows` and `read_records` take them.

        Raises `UserError` for a file that the folder does not have.
        """
        if self.folder is None:
            return f"{self.hub_id}:{config}" if config else self.hub_id
        if not self.has(file):
            there = "which does not have it" if self.folder.is_dir() else "which does not exist"
            raise UserError(f"{self.title} needs the file {file} in {self.folder}, {there}; {self.remedy}.")
        return self.folder / file

    def read(self, file: str, config: str = "", *, split: str | None = None) -> list[SourceRecord]:
        """The records of a file in the folder, or of a configuration and split on the hub."""
        return read_records(self.locate(file, config), split=split if self.folder is None else None)
