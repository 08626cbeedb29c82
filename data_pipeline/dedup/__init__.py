"""Deduplication of documents: exact duplicates by digest, near duplicates by MinHash.

1. `digests.scan_unit` reads each unit of the corpus once. It writes a digest of each document and,
   if near duplicates are to be found, a MinHash signature.
2. `matching.match_exact` and `matching.match_near` compare these across all units.
3. `matching.resolve_near` decides which near duplicates to drop.
4. `matching.duplicates_in` tells the encode phase which documents of a unit to drop.

The first document of each group of duplicates, by unit and document number, is kept.
"""
