"""Pages that open offline: charts as SVG, one style, and what HTML pages of several stages share.

A ground floor like `conf`: it imports nothing of the project.
"""
