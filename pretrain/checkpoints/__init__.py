"""Checkpoints that are either whole and verified or not there (I7).

`step_N/` holds the shards of torch.distributed.checkpoint and, written last, `manifest.json` with
the size and hash of every file and the position in the data.

| file | |
|---|---|
| `files` | names, manifests, hashes, verdicts, quarantine |
| `aside` | a process beside the trainer, for work on files that may hang or die |
| `staging` | what this rank saves, copied to memory that this process shares |
| `saver` | a save from the step's border to the commit |
| `commit` | the parts of a save that touch files |
| `retention`, `interval` | which ones stay, when the next is due |
| `read` | loading, without running anybody's pickle |
| `find` | which one to go on from |
| `copies` | to and from an object store |
| `command` | `python -m pretrain checkpoints` |
"""
