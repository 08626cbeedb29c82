"""The command `python -m model gguf`, which writes a Hugging Face folder as a GGUF file."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from conf.errors import InputError, RunAborted, one_of
from conf.model_card import read_front_matter
from conf.output_kinds import GGUF, GGUF_ORIGIN
from conf.outputs import Output
from model.config import ModelConfig
from model.families import FAMILIES
from model.families.folder import HFWeights, read_config
from model.gguf.metadata import check_graph, context_length, write_metadata
from model.gguf.tensors import TYPES, add_tensor_infos, arrays, entries
from model.gguf.vocabulary import GGUFVocabulary, read_vocabulary

K_TYPES = (*("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k"),)
"""Values of `type` that QUANTIZER makes."""
QUANTIZER = "llama-quantize"
FILE_TYPES = {"f32": "ALL_F32"}
QUANTIZATION_VERSION = 2


@dataclass
class GGUFConfig:
    """Configuration of `model gguf`.

    model: the Hugging Face folder of the model.
    out: the GGUF file to write.
    type: type of the matrices: f32, f16, bf16, q8_0 or q4_0; or, if llama.cpp's program
        llama-quantize is installed, one of its K-quants, such as q4_k_m.
    overwrite: whether to replace `out` if it is a GGUF file that Headwater made.
    """

    model: str = MISSING
    out: str = MISSING
    type: str = "q8_0"
    overwrite: bool = False

    def __post_init__(self) -> None:
        one_of("type", self.type, (*TYPES, *K_TYPES))


def gguf(config: GGUFConfig) -> None:
    """Writes the file `out`, complete or not at all, and prints what llama.cpp does differently.

    Raises:
        InputError: llama.cpp does not have the model's family, one of its features or its
            tokenizer, or a program or package is not installed.
        RunAborted: llama-quantize failed.
    """
    output = Output(config.out, GGUF, config.overwrite, [config.model])
    output.check()
    check_installed()
    program = find_quantizer(config.type) if config.type in K_TYPES else None
    folder = Path(config.model)
    model = read_config(folder)
    graph = FAMILIES[model.architecture].gguf(vars(model))
    check_graph(model, graph)
    vocabulary = read_vocabulary(folder, model.vocab_size)
    with output.file() as path:
        plain = path.with_name("plain.gguf") if program else path
        write_file(plain, folder, model, vocabulary, "f32" if program else config.type)
        if program:
            quantize(program, plain, path, config.type)
            plain.unlink()
        size = path.stat().st_size
    print(
        f"{config.out}: {config.type}, {size / 1e6:,.1f} MB, architecture {graph.name}, "
        f"pre-tokenizer {vocabulary.pre}, context {context_length(model, graph):,} tokens"
    )
    for note in [*notes(model, config.type), *vocabulary.notes]:
        print(f"- {note}")


def check_installed() -> None:
    """Raises InputError if a package is not installed."""
    from importlib.util import find_spec

    missing = [name for name in ("gguf", "transformers") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"gguf: {' and '.join(missing)} not installed. Run pip install -c constraints.txt "
            '-e ".[gguf]".'
        )


def find_quantizer(type: str) -> str:
    """Returns the path of llama-quantize; raises InputError if it is not installed."""
    program = shutil.which(QUANTIZER)
    if program is None:
        raise InputError(
            f"type={type}: K-quants need llama.cpp's program {QUANTIZER}, which is not on PATH. "
            f"Install llama.cpp, or use one of {', '.join(TYPES)}."
        )
    return program


def quantize(program: str, plain: Path, path: Path, type: str) -> None:
    """Makes a K-quant of a file in f32; raises RunAborted if the program fails."""
    done = subprocess.run(
        [program, str(plain), str(path), type.upper()], capture_output=True, text=True, check=False
    )
    if done.returncode or not path.is_file():
        lines = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise RunAborted(
            f"type={type}: {QUANTIZER} exited with code {done.returncode} ({' '.join(lines)}).", 1
        )


def notes(model: ModelConfig, type: str) -> list[str]:
    """Returns sentences about what differs from the folder."""
    graph = FAMILIES[model.architecture].gguf(vars(model))
    found = []
    context = context_length(model, graph)
    if context < model.max_seq_len:
        found.append(
            f"the graph '{graph.name}' of llama.cpp has no sliding window: the context length is "
            f"{context:,} tokens, the window, instead of {model.max_seq_len:,}"
        )
    if type in TYPES:
        made = [entry for entry in entries(model, graph, type) if len(entry.shape) > 1]
        other = [entry for entry in made if entry.type.name == "F16" and type != "f16"]
        if other:
            found.append(
                f"{len(other)} of {len(made)} matrices have type f16, because their rows of "
                f"{', '.join(sorted({f'{entry.shape[-1]:,}' for entry in other}))} values are not "
                "multiples of 32"
            )
    return found


def write_file(
    path: Path, folder: Path, model: ModelConfig, vocabulary: GGUFVocabulary, type: str
) -> None:
    """Writes a GGUF file with a type of TYPES, with one tensor in memory at a time."""
    from gguf import GGUFWriter, LlamaFileType

    graph = FAMILIES[model.architecture].gguf(vars(model))
    tensors = entries(model, graph, type)
    writer = GGUFWriter(path, graph.name)
    name = folder.resolve().name
    writer.add_string(GGUF_ORIGIN, name)
    writer.add_name(name)
    if license := read_front_matter(folder).get("license"):
        writer.add_license(str(license))
    writer.add_file_type(LlamaFileType[FILE_TYPES.get(type, f"MOSTLY_{type.upper()}")])
    writer.add_quantization_version(QUANTIZATION_VERSION)
    write_metadata(writer, model, graph)
    vocabulary.write(writer)
    add_tensor_infos(writer, tensors)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        weights = HFWeights(folder, FAMILIES[model.architecture])
        for array in arrays(tensors, weights, model, graph):
            writer.write_tensor_data(array)
    finally:
        writer.close()
