"""Renders a template to a single HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"


def render(template: Path, content: dict[str, Any]) -> str:
    """Returns the HTML page of a template.

    All text is escaped, except for drawings, which are `markupsafe.Markup`. The template may import
    `macros.html` from this package. Its variable `style` holds the CSS of all pages, followed by
    the CSS file with the template's name, if there is one.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = template.with_suffix(".css")
    style = (TEMPLATES / "base.css").read_text() + (css.read_text() if css.is_file() else "")
    return environment.get_template(template.name).render(style=style, **content)
