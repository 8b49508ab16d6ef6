"""The files of a folder of evidence, by name, and the sums of a checkpoint's files."""

from pathlib import Path

from expunge.system import manifest

STATEMENT, ENVELOPE, KEY = "evidence.json", "evidence.dsse.json", "key.pub"
PAGE, ROWS, SBOM = "index.html", "rows.jsonl", "sbom.cdx.json"
PREDICATE = "urn:expunge:evidence-of-unlearning:v1"


def files_of(folder: str | Path) -> dict[str, str]:
    """The SHA-256 sum of each file of a checkpoint's folder, but for its manifest."""
    place = Path(folder)
    names = sorted(str(file.relative_to(place)) for file in place.rglob("*") if file.is_file())
    entries = manifest.entries_once(place, (name for name in names if name != manifest.NAME))
    return {name: entry["sha256"] for name, entry in entries.items()}
