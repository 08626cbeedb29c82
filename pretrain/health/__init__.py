"""Detects the faults of a run, and handles each of them or ends the run with an exit code.

The table lists the modules that detect each fault, and its outcome. `launch` and SLURM jobs act on
the exit code:

    fault                              found by                    outcome
    loss or gradient is nan            bad_steps                   the update is skipped
    many bad steps in a row            bad_steps                   rewind to a checkpoint
    SIGTERM, time limit, STOP file     stop                        checkpoint, exit code 85
    a rank hangs                       watchdog, flight_recorder   stacks in logs/hang, exit code 87
    a rank is slow                     stragglers                  a warning that names the rank
    a bit flips in a replica           receipts, fingerprint       exit code 88
    a kernel computes differently      replay                      exit code 88
    restarts without progress          restarts                    exit code 86
    two jobs use one run folder        run_lock                    the second one is refused
    settings or packages changed       changes                     refused, or a warning

Example: on two ranks, rank 1's loss is nan in step 5. `BadSteps.judge` reduces the verdicts of both
ranks on the device, neither rank applies the update, and the ledger marks the tokens of step 5 as
skipped. `outcome` records how the run ended. `late_gather` is an all-gather that no rank waits for.
"""
