"""The plan of memory against what is really there."""

from __future__ import annotations

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from model.config import ModelConfig
from model.network import Decoder
from pretrain.activation_checkpointing import MODES, apply_activation_checkpointing
from pretrain.memory import Sizes, Work, activation_bytes, loss_bytes

BATCH, SEQ = 2, 256
MODEL = {
    "name": "measured",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "max_seq_len": 512,
}


class Storages(TorchDispatchMode):
    """Remembers every storage that an operator returns."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.seen[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def alive(self, module):
        """Bytes of those that something still holds, without the module's own."""
        own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        others = [entry for pointer, entry in self.seen.items() if pointer not in own]
        return sum(size for reference, size in others if not reference.expired())


def kept_bytes(config, precision, mode):
    """Bytes that a forward pass leaves behind for backward."""
    torch.manual_seed(0)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    model = Decoder(config).to(dtype)
    apply_activation_checkpointing(model, mode)
    tokens = torch.randint(0, config.vocab_size, (BATCH, SEQ))
    with Storages() as storages:
        loss = model(tokens, tokens)
    assert loss.requires_grad
    return storages.alive(model)


@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_what_autograd_keeps(precision, mode, window):
    config = ModelConfig(**MODEL, sliding_window=window)
    work = Work(
        precision,
        BATCH * SEQ,
        SEQ,
        checkpointing=mode,
        dense_mask=window is not None,
        device="cpu",
    )
    planned = activation_bytes(config, Sizes(), work)
    if mode != "none":  # what a block computes again is not there yet
        more = ModelConfig(**MODEL | {"num_layers": 5}, sliding_window=window)
        again = Work(precision, BATCH * SEQ, SEQ, dense_mask=window is not None, device="cpu")
        planned -= activation_bytes(more, Sizes(), again) - activation_bytes(config, Sizes(), again)
    size = 4 if precision == "fp32" else 2
    planned += loss_bytes(config, BATCH * SEQ, 1, size)[0]
    print("\nXX", precision, mode, window, kept_bytes(config, precision, mode), planned)
    assert planned == pytest.approx(kept_bytes(config, precision, mode), rel=0.05)
