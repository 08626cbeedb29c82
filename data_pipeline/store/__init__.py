"""Shards and their manifest: opened, read, fetched and verified.

manifest      what a corpus holds and what made it
corpus        opens a corpus by path or URL, and the token stream of a source
streams       the shards of a source as one stream of tokens
shards        a pair of `.bin` and `.idx` on this machine (index_file, checksums)
remote        the same in an object store (storage, block_cache, threads)
sizes         file sizes compared with the manifest before anything is read
verify        every byte compared with the manifest (shard_checks, shard_scan, megatron_reader)
"""
