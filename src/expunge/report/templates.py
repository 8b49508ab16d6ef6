"""The templates of pages, which share the report's style and box."""

from functools import cache
from pathlib import Path
from typing import Any


@cache
def template(path: Path) -> Any:
    """The template in a file; it may include those beside it and the report's."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([path.parent, Path(__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(path.name)
