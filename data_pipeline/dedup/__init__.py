"""Deduplication: equal URLs and texts by digest, near duplicates by MinHash, and paragraphs.

1. `digests.scan_unit` reads each unit of the corpus once. It writes a digest of each document and,
   if near duplicates are to be found, a MinHash signature.
2. `matching.match` compares these across all units, one range of values per task.
3. `matching.merge_range` collects the duplicates in a range of units, and clusters the near ones.
4. `matching.settle_ranges` adds the links between clusters in different ranges.
5. `matching.duplicates_in` tells the encode phase which documents of a unit to drop.

Then `paragraphs` removes paragraphs that many of the remaining documents contain, if asked to.

The first document of each group of duplicates, by unit and document number, is kept.
"""
