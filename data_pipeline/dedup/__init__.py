"""Deduplication of documents: exact duplicates by digest, near duplicates by MinHash.

1. `digests.scan_unit` reads each unit of the corpus once and writes a digest per document and, if
   near duplicates are searched, a MinHash signature.
2. `matching.match_exact` and `matching.match_near` compare them over all units.
3. `matching.resolve_near` picks the documents to drop among the near duplicates.
4. `matching.duplicates_in` tells the encoding pass which documents of a unit to drop.

The first document of a group of duplicates, by unit and number, is kept.
"""
