"""HTML pages that work offline: SVG charts, a common style, and template macros.

Like `conf`, this package imports nothing else from the project.
"""
