"""Keeps a run alive, and ends it when that is the right thing to do.

Each fault has one hook or guard, and one outcome that `launch` and SLURM jobs act on:

    fault                              found by                    outcome
    loss or gradient is nan            bad_steps                   the update is skipped
    many bad steps in a row            bad_steps                   rewind to a checkpoint, new data
    SIGTERM, time limit, STOP file     stop                        checkpoint, exit code 85
    a rank hangs                       watchdog, flight_recorder   stacks in logs/hang, exit code 87
    a rank is slow                     stragglers                  a warning with its name
    a bit flips in a replica           receipts, fingerprint       exit code 88
    a kernel computes differently      replay                      exit code 88
    restarts without progress          restarts                    exit code 86
    two jobs use one run folder        run_lock                    the second one is refused
    settings or packages changed       changes                     refused, or a warning

Example: on two ranks, rank 1's loss is nan in step 5. `BadSteps.judge` reduces the verdicts of both
ranks on the device, neither applies the update, and the ledger marks the tokens of step 5 as
skipped. `outcome` writes how the run ended; `late_gather` is the collective that costs no waiting.
"""
