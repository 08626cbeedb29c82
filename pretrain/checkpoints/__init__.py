"""Saves and loads checkpoints, each of which is either complete and verified or absent (I7).

A run on two ranks with `checkpoint.every_steps=50` that was killed during its third save leaves
this folder:

    checkpoints/
      latest                  {"checkpoint": "step_100"}
      step_50.corrupt/        quarantined: a file did not match its hash
      step_100/
        __0_0.distcp          shards of rank 0, as torch.distributed.checkpoint writes them
        __1_0.distcp          shards of rank 1
        .metadata             which file contains which tensor
        manifest.json         size and hash of each file, position in the data; written last
      step_150.tmp-5d1f/      unfinished; the next start removes it

These modules take part in a save. Training waits only for those of the first two lines:

    training  hooks/checkpoints.py   decides with `interval` that a save is due
              saver, staging         plan the items and copy them to shared memory
    thread    saver                  waits for the writer, and collects the votes of all ranks
    process   writer_process         runs the following; the trainer survives if it hangs or dies
              commit, direct_io      write the shards and read them back from the disk
              commit, files          write the manifest, rename step_150.tmp-5d1f to step_150
              retention              chooses which old checkpoints are deleted
              mirror                 uploads the checkpoint to an object store

A start uses `find`, which returns the newest checkpoint that all ranks verify or downloads it from
the mirror, and `read`, which loads it into any layout. `command` is `python -m pretrain
checkpoints`.
"""
