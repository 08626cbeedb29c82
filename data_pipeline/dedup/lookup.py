"""Finds which document a duplicate repeats, in the tables that `originals` wrote.

Only the parts of the tables that can contain a document are read, so the time of a look-up hardly
grows with the number of duplicates. The texts of documents are not kept. They are read from the
files that the corpus was made from, as long as these exist.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from conf.errors import InputError
from conf.text_files import COMPRESSED
from data_pipeline.cleaning.chain import CHANGES_TEXT, Chain
from data_pipeline.cleaning.config import CleaningConfig, PiiOptions
from data_pipeline.dedup import minhash
from data_pipeline.dedup.digests import NEAR
from data_pipeline.dedup.tables import FILES, FOLDER, SETTINGS, Tables
from data_pipeline.store import storage
from data_pipeline.store.manifest import Manifest
from data_pipeline.store.remote import cached_file
from data_pipeline.text.corpus import SourceConfig
from data_pipeline.text.readers import Row, read_unit
from data_pipeline.text.units import SourceFile, Unit


@dataclass(frozen=True)
class Copy:
    """A document in the tables of duplicates.

    Attributes:
        folder: folder of the edition that it belongs to.
        unit, number: place of the document in the edition.
        source: name of its source.
        root, file: folder and name of its file.
        bytes: size of the file.
        row: number of the row in the file, counted from 0.
        position: byte offset of the row in a file of plain JSON lines, else like `row`.
        reason: the deduplication step that dropped it, or '' for a kept document.
        repeats: folder, unit and number of the document that it repeats, itself if it is kept.
        copies: number of documents of the edition that were dropped because they repeat it.
    """

    folder: Path
    unit: int
    number: int
    source: str
    root: str
    file: str
    bytes: int
    row: int
    position: int
    reason: str
    repeats: tuple[Path, int, int]
    copies: int

    @property
    def path(self) -> str:
        """Path or URL of the file."""
        return self.root + self.file

    @property
    def place(self) -> dict[str, Any]:
        """The fields that name the document for a user."""
        return {
            "source": self.source,
            "file": self.file,
            "row": self.row,
            "position": self.position,
        }


class Duplicates:
    """The duplicates of a corpus, in all of its editions.

    Raises InputError if the corpus has no tables of duplicates.
    """

    def __init__(self, manifest: Manifest, added: Path | None = None) -> None:
        """Opens the tables of all editions, and of the folder of one that is being added."""
        self.manifest = manifest
        self.corpus = manifest.folder.absolute()
        numbers = range(1, manifest.edition_count + 1)
        folders = [manifest.edition_folder(number).absolute() for number in numbers]
        folders += [] if added is None else [added.absolute()]
        self.editions = [found for folder in folders if (found := self._open(folder))]
        if not self.editions:
            raise InputError(
                f"{manifest.folder} does not record its duplicates. Tokenize the corpus again with "
                "corpus.cleaning.dedup.exact=true or corpus.cleaning.dedup.minhash=true."
            )
        self._tables = {found.folder: found for found in self.editions}

    def find(self, doc: str) -> list[Copy]:
        """Returns the documents that `<file>:<row>` or `<file>#<position>` names.

        If the corpus has no index, only duplicates and the documents that they repeat are found.
        Without a row or position, all those of the file are returned. The end of the file's path is
        enough. Raises InputError if the corpus has no such file.
        """
        for separator, column in ((":", "row"), ("#", "position")):
            name, _, place = doc.rpartition(separator)
            if name and place.isdigit() and (units := self._units(name)):
                return self._named(name, units, column, int(place))
        if units := self._units(doc):
            return self._named(doc, units)
        raise InputError(
            f"duplicate={doc}: {self.manifest.folder} was not made from such a file. Give "
            "<file>:<row> or <file>#<position>, as cleaning.json has them."
        )

    def at(self, folder: Path, unit: int, number: int) -> Copy | None:
        """Returns the document at a place in the corpus, or in another one that it repeats."""
        if folder not in self._tables:
            found = self._open(folder)
            if found is None:
                return None
            self._tables[folder] = found
        return next(self._rows(self._tables[folder], unit, {"number": [number]}), None)

    def original(self, copy: Copy) -> Copy | None:
        """Returns the kept document that a duplicate repeats, or the document itself if kept.

        Returns None if it belongs to another corpus, whose tables of duplicates are not there.
        """
        found: Copy | None = copy
        while found is not None and found.reason:
            found = self.at(*found.repeats)
        return found

    def copies_of(self, original: Copy) -> int:
        """Returns how many documents of all editions were dropped as copies of a kept one."""
        place = original.folder, original.unit, original.number
        return original.copies + sum(tables.copies_added(*place) for tables in self.editions)

    def units(self) -> list[tuple[Tables, int]]:
        """Returns the units that have a table."""
        return [
            (tables, int(path.stem))
            for tables in self.editions
            for path in sorted(tables.file(FILES).parent.glob("[0-9]*.parquet"))
        ]

    def near_in(self, tables: Tables, unit: int) -> list[int]:
        """Returns the numbers of the near duplicates that were dropped from a unit."""
        found = tables.read(unit, columns=["number", "reason"])
        numbers: list[int] = found.filter(pc.equal(found["reason"], NEAR))["number"].to_pylist()
        return numbers

    def copies_in(self, tables: Tables, unit: int, numbers: list[int] | None = None) -> list[Copy]:
        """Returns the documents of a unit in its table, or those with the given numbers."""
        return list(self._rows(tables, unit, {} if numbers is None else {"number": numbers}))

    def texts(self, copies: Iterable[Copy]) -> dict[Copy, str]:
        """Returns the clean texts of the documents that can still be read.

        The files must be on this machine and have the size that they had.
        """
        by_file: dict[tuple[Path, str, str, str], list[Copy]] = {}
        for copy in copies:
            by_file.setdefault((copy.folder, copy.source, copy.root, copy.file), []).append(copy)
        return {copy: text for group in by_file.values() for copy, text in self._read(group)}

    def describe(self, copy: Copy) -> str:
        """Returns the name of a document for a sentence."""
        return self.describe_place(self._tables[copy.folder], copy.place)

    def describe_place(self, tables: Tables, place: dict[str, Any]) -> str:
        """Returns the name of the document at a `Copy.place` of an edition."""
        settings = tables.settings["sources"][place["source"]]
        row = "" if settings["format"] == "text" else f", row {place['row']:,}"
        return f"{place['file']}{row} ({place['source']})"

    @property
    def n_grams(self) -> int:
        """Number of words of the n-grams that texts are compared by."""
        return int(self.editions[-1].settings["n_grams"])

    def similarity(self, text: str, other: str) -> float:
        """Returns the Jaccard similarity of the word n-grams of two texts."""
        return minhash.similarity(text, other, self.n_grams)

    def _open(self, folder: Path) -> Tables | None:
        def fetch(path: Path) -> Path:
            if not path.is_relative_to(self.corpus):
                return path
            return cached_file(self.manifest, str(path.relative_to(self.corpus)))

        if not fetch(folder / FOLDER / SETTINGS).is_file():
            return None
        return Tables(folder, self.corpus, fetch)

    def _units(self, name: str) -> list[tuple[Tables, int, int]]:
        """Returns the units that may have a file, and the numbers of their first rows in it."""
        # A user may give more of the path than the name that the file has in the corpus, or less.
        parts = name.split("/")
        ends = ["/".join(parts[start:]) for start in range(len(parts))]
        units = []
        for tables in self.editions:
            files = tables.file(FILES)
            found = pq.read_table(files, filters=[("name", "in", ends)])
            if not len(found):
                found = pq.read_table(files, filters=pc.ends_with(pc.field("name"), "/" + name))
            columns = found["unit"].to_pylist(), found["row"].to_pylist()
            units += [(tables, unit, row) for unit, row in zip(*columns, strict=True)]
        return units

    def _named(
        self, name: str, units: list[tuple[Tables, int, int]], column: str = "", place: int = 0
    ) -> list[Copy]:
        """Returns the documents of a file in some units, only those at a place if it is given."""
        if column == "row":  # several units may share a file
            units = [entry for entry in units if entry[2] <= place]
        fields = {column: [place]} if column else {}
        found = (copy for tables, unit, _ in units for copy in self._rows(tables, unit, fields))
        return [
            copy
            for copy in found
            if copy.path == name or copy.path.endswith("/" + name) or copy.file == name
        ]

    def _rows(self, tables: Tables, unit: int, fields: dict[str, list[int]]) -> Iterator[Copy]:
        """Yields the rows of a unit's table that have one of the given values in each column."""
        table = tables.read(unit, fields)
        if table is None:
            return
        source = table.schema.metadata[b"source"].decode()
        for row in table.to_pylist():
            yield Copy(
                folder=tables.folder,
                unit=unit,
                number=row["number"],
                source=source,
                root=row["root"],
                file=row["name"],
                bytes=row["bytes"],
                row=row["row"],
                position=row["position"],
                reason=row["reason"],
                repeats=(*tables.place(row["repeats_unit"]), row["repeats"]),
                copies=row["copies"],
            )

    def _read(self, copies: list[Copy]) -> Iterator[tuple[Copy, str]]:
        """Yields the documents of a file with their texts, if it can still be read."""
        tables = self._tables[copies[0].folder]
        settings = tables.settings["sources"][copies[0].source]
        steps = [step for step in settings["steps"] if step in CHANGES_TEXT]
        fields = ("format", "text_field", "subset", "split")
        source = SourceConfig(**{name: settings[name] for name in fields})
        path, size = copies[0].path, copies[0].bytes
        if storage.is_remote(path) or not os.path.exists(path):
            return
        if os.path.isfile(path) and os.path.getsize(path) != size:
            return
        chain = Chain(_cleaning(tables.settings), steps)
        try:
            for copy, row in _rows_of(copies, SourceFile(path, copies[0].file, size, ""), source):
                if not row.flaw:
                    yield copy, chain.transform(row.text)
        except InputError:  # the file cannot be read to its end
            return


def _cleaning(settings: dict[str, Any]) -> CleaningConfig:
    """Returns the options of the cleaning steps that change text."""
    return CleaningConfig(
        word_tokenizer=settings["word_tokenizer"],
        c4=settings["c4"],
        pii=PiiOptions(**settings["pii"]),
    )


def _rows_of(
    copies: list[Copy], file: SourceFile, source: SourceConfig
) -> Iterator[tuple[Copy, Row]]:
    """Yields documents of a file with their rows."""
    if source.format == "jsonl" and not file.path.endswith(COMPRESSED):
        for copy in copies:
            place = Unit(0, copy.source, 0, (file,), copy.position, copy.position + 1)
            yield from ((copy, row) for row in read_unit(place, source))
        return
    wanted = {copy.row: copy for copy in copies}
    for row in read_unit(Unit(0, copies[0].source, 0, (file,)), source):
        if row.line in wanted:
            yield wanted.pop(row.line), row
        if not wanted:
            return
