"""The data pipeline, which turns raw text into shards of token ids, and shards into batches.

A document passes through these packages:

    text/         reads raw files into documents, and selects which to keep
    cleaning/     filters documents and changes their text
    dedup/        finds exact and near duplicates
    tokenizing/   trains or loads the tokenizer, encodes documents, writes shards
    store/        the format of shards and manifests, local or remote
    sampling/     determines the order of samples, and reads batches

`inspection/` makes an HTML page about a corpus, `trace.py` maps steps of a run to documents and
back, `import_shards/` imports shards of other programs, and `pairs.py` makes tuning data.
"""
