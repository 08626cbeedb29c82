"""From a template and its content to one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"


def render(template: Path, content: dict[str, Any]) -> str:
    """The page of a template; all text in it is escaped but for drawings, `markupsafe.Markup`.

    It may import `macros.html` of this package, and `style` is the style of all pages followed by
    that of a CSS file of the template's name, where there is one.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = template.with_suffix(".css")
    style = (TEMPLATES / "base.css").read_text() + (own.read_text() if own.is_file() else "")
    return environment.get_template(template.name).render(style=style, **content)
