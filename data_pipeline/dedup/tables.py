"""The tables of duplicates of one preparation, and which tables its links lead to.

Links number the units of earlier preparations before those of the preparation itself. `place` finds
the tables of any unit, in another edition of the corpus or in another corpus.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "duplicates"
"""Name of the folder of these tables in the folder of an edition."""
FILES, SETTINGS, EARLIER = "files.parquet", "settings.json", "earlier.parquet"

Fetch = Callable[[Path], Path]


class Tables:
    """The tables of one preparation, in the folder of an edition.

    Attributes:
        folder: folder of the edition.
        settings: what reading the texts needs, and the earlier preparations.
        earlier: folders of the earlier preparations, each with its number of units.
    """

    def __init__(self, folder: Path, corpus: Path, fetch: Fetch = lambda path: path) -> None:
        """Opens the tables. `corpus` is the folder of the corpus that the edition belongs to.

        `fetch` returns the local path of a file.
        """
        self.folder = folder
        self._fetch = fetch
        self.settings: dict[str, Any] = json.loads(self.file(SETTINGS).read_text())
        self.earlier: list[tuple[Path, int]] = [
            (corpus / path, units) for path, units in self.settings["earlier"]
        ]

    def file(self, name: str) -> Path:
        """Returns the local path of one of the files, which need not exist."""
        return self._fetch(self.folder / FOLDER / name)

    def place(self, unit: int) -> tuple[Path, int]:
        """Returns the folder of a unit that a link names, and its number there."""
        for folder, units in self.earlier:
            if unit < units:
                return folder, unit
            unit -= units
        return self.folder, unit

    def number(self, folder: Path, unit: int) -> int | None:
        """Returns the number by which links name a unit of an earlier preparation."""
        before = 0
        for other, units in self.earlier:
            if other == folder:
                return before + unit
            before += units
        return None

    def copies_added(self, folder: Path, unit: int, number: int) -> int:
        """Returns how many documents of this preparation repeat an earlier document."""
        import pyarrow.parquet as pq

        named = self.number(folder, unit)
        path = self.file(EARLIER)
        if named is None or not path.is_file():
            return 0
        filters = [("unit", "=", named), ("number", "=", number)]
        return sum(pq.read_table(path, filters=filters)["copies"].to_pylist())

    def read(self, unit: int, fields: dict[str, list[int]] | None = None, **options: Any) -> Any:
        """Returns the rows of a unit that have one of the given values in each field.

        Returns None if the unit has no table. `options` are those of `pyarrow.parquet.read_table`.
        """
        import pyarrow.parquet as pq

        path = self.file(f"{unit:06}.parquet")
        if not path.is_file():
            return None
        filters = [(name, "in", values) for name, values in (fields or {}).items()] or None
        return pq.read_table(path, filters=filters, **options)
