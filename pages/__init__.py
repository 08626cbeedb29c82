"""HTML pages that work offline: SVG charts, a common style, and template macros.

Like `conf`, it imports nothing else of the project.
"""
