"""`python -m data_pipeline tokenize`: tokenizes a corpus into a folder of shards with a manifest.

Results are kept in `<out>.partial` until the finished folder is renamed to `<out>`, or, with
`add_to=`, into the corpus that documents are added to. `tokenization.py` has the
phases of the work.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from conf.errors import InputError
from conf.files import restore
from conf.output_kinds import CORPUS
from conf.outputs import Output
from data_pipeline.dedup import digests, index
from data_pipeline.store import storage
from data_pipeline.store.manifest import FILE, load_manifest
from data_pipeline.text.corpus import TokenizeConfig, check_urls
from data_pipeline.text.units import plan_units
from data_pipeline.tokenizing.addition import (
    configure_addition,
    finish_addition,
    new_units,
    open_base,
    record_addition,
)
from data_pipeline.tokenizing.fingerprints import digest_of, fingerprint_inputs
from data_pipeline.tokenizing.finish import print_summary
from data_pipeline.tokenizing.progress import write_outline
from data_pipeline.tokenizing.tokenization import Tokenization, phases_of
from data_pipeline.tokenizing.tokenizer import check_tokenizer, settle_tokenizer
from data_pipeline.tokenizing.work import JobShard, WorkFolder


def tokenize(config: TokenizeConfig) -> None:
    """Tokenizes a corpus into `config.out`, resuming unfinished work if there is any.

    Does nothing if `config.out` already exists and was made from the same inputs. With
    `config.add_to`, the documents are added to that corpus instead.
    """
    console = Console()
    check_urls(config.corpus)
    if config.add_to is not None:
        _add(config, console)
        return
    out = Path(config.out)
    if storage.is_remote(config.out):
        raise InputError(
            f"out={config.out}: the output cannot be remote. Give a local folder, and upload it "
            "afterwards."
        )
    config = replace(config, tokenizer=settle_tokenizer(config.tokenizer))
    output = Output(config.out, CORPUS, config.overwrite, [config.tokenizer.path])
    output.check_foreign()
    job_shard = JobShard.resolve(config.rank, config.world)
    check_tokenizer(config.tokenizer)
    units = plan_units(config.corpus)
    inputs, scanned = fingerprint_inputs(config, units)
    earlier = index.against_folders(config.corpus.cleaning.dedup)
    folders = {os.path.dirname(file.path) for unit in units for file in unit.files}
    output = replace(output, inputs=[*output.inputs, *sorted(folders)])
    output.check_foreign()
    folder = WorkFolder(output.path, job_shard)
    folder.check()
    is_resumable = folder.path.exists() and folder.inputs() in (inputs, None)
    if not is_resumable and _up_to_date(output, inputs, console):
        return
    started = time.monotonic()
    with folder.locked(inputs, scanned) as resumed:
        # Another process may have finished before this one acquired the lock, or may have been
        # killed while it renamed the folder.
        restore(folder.content, output.path)
        if folder.is_renamed():
            output = replace(output, overwrite=False)
        if _up_to_date(output, inputs, console):
            folder.remove()
            return
        write_outline(folder.path, units, phases_of(config.corpus))
        if resumed and folder.has_results():
            console.print(f"resuming from {folder.path}", highlight=False, soft_wrap=True)
        try:
            made = Tokenization(config, units, inputs, folder, console, earlier).run()
        except InputError as error:
            raise _with_place(error, folder) from None
        if made is None:
            return
        (folder.content / FILE).write_text(made.to_json())
        folder.mark_complete()
        output.put(folder.content)
        folder.remove()
    print_summary(load_manifest(out), console)
    seconds = time.monotonic() - started
    console.print(f"made {out} in {seconds:.0f} s", highlight=False, soft_wrap=True)


def _add(config: TokenizeConfig, console: Console) -> None:
    """Adds documents to the corpus `config.add_to`, resuming unfinished work if there is any."""
    started, given = time.monotonic(), config
    job_shard = JobShard.resolve(config.rank, config.world)
    base = open_base(config)
    output = Output(str(config.add_to), CORPUS, key="add_to")
    folder = WorkFolder(output.path, job_shard)
    folder.check()
    if folder.path.exists() and not job_shard.rank:
        with folder.held():
            if finish_addition(folder):
                base = load_manifest(base.folder)
    listed = plan_units(config.corpus)
    folders = {os.path.dirname(file.path) for unit in listed for file in unit.files}
    replace(output, inputs=sorted(folders)).check_foreign()
    config = configure_addition(config, base, [])
    inputs, scanned = fingerprint_inputs(config, listed)
    units = new_units(config.corpus, base)
    if inputs in base.edition_inputs or not units:
        console.print(
            f"{config.add_to} already has these documents (same files, sizes and settings).",
            highlight=False,
            soft_wrap=True,
        )
        return
    config = configure_addition(config, base, units)
    options = config.corpus.cleaning.dedup
    earlier = index.against_folders(options)
    if digests.is_enabled(config.corpus):
        earlier += index.earlier_folders(base, options, "add_to")
    state = [base.fingerprint, base.edition_count]
    work_inputs = [digest_of({"inputs": key, "base": state}) for key in (inputs, scanned)]
    with folder.locked(*work_inputs) as resumed:
        added = None
        if load_manifest(base.folder) == base:
            write_outline(folder.path, units, phases_of(config.corpus))
            if resumed and folder.has_results():
                console.print(f"resuming from {folder.path}", highlight=False, soft_wrap=True)
            try:
                added = Tokenization(config, units, inputs, folder, console, earlier, base).run()
            except InputError as error:
                raise _with_place(error, folder) from None
            if added is None:
                return
            record_addition(folder, base, added)
            finish_addition(folder)
        elif not folder.has_results():
            folder.remove()
    if added is None:  # another process has added to the corpus in the meantime
        _add(given, console)
        return
    grown = load_manifest(base.folder)
    print_summary(added, console)
    seconds = time.monotonic() - started
    console.print(
        f"added to {config.add_to} in {seconds:.0f} s, as edition {grown.edition_count}",
        highlight=False,
        soft_wrap=True,
    )


def _with_place(error: InputError, folder: WorkFolder) -> InputError:
    """Returns the error with the place of the finished work, or removes the folder if empty."""
    if folder.has_results():
        return InputError(f"{error} The finished work is kept in {folder.path}.")
    folder.remove()
    return error


def _up_to_date(output: Output, inputs: str, console: Console) -> bool:
    out = Path(output.given)
    if output.overwrite or not (out / FILE).is_file():
        return False
    found = load_manifest(out)
    if inputs not in found.edition_inputs:
        output.check("a corpus from other files or settings")
    missing = found.missing_files()
    if missing:
        raise InputError(
            f"{out} lacks {len(missing)} of the files in its manifest, such as {missing[0]}. "
            "Restore them, or tokenize the corpus again with overwrite=true."
        )
    console.print(f"{out} is up to date (same files, sizes and settings).", soft_wrap=True)
    print_summary(found, console)
    return True
