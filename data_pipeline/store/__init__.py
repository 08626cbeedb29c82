"""Opens, reads, fetches and verifies the shards of a corpus and their manifest.

manifest      describes the content of a corpus and how it was made
corpus        opens a corpus by path or URL, and the token streams of its sources
streams       reads the shards of a source as one stream of tokens
shards        reads a pair of `.bin` and `.idx` on this machine (index_file, checksums)
remote        reads shards in an object store (storage, remote_file, block_cache,
              threads)
sizes         compares file sizes with the manifest before anything is read
verify        compares every byte with the manifest (shard_checks, shard_scan, megatron_reader)
"""
