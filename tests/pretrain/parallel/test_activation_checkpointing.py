"""Computing again changes no bit, and holds less memory."""

from __future__ import annotations

import pytest
import torch
import torch.utils._pytree as pytree
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from model.network import Decoder
from pretrain.parallel.activation_checkpointing import MODES, apply_activation_checkpointing
from tests.model.shapes import initialize, tiny

MODEL = tiny(hidden_size=64, intermediate_size=96, num_heads=4, head_dim=16, vocab_size=256)
STARTS = torch.tensor([0, 30, 64, 100, 256, 256], dtype=torch.int32)


class Storages(TorchDispatchMode):
    """Storages that ops made while this is on."""

    def __init__(self):
        super().__init__()
        self.made = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def bytes_alive(self):
        return sum(size for reference, size in self.made.values() if not reference.expired())


def run(mode):
    model = Decoder(MODEL)
    initialize(model, MODEL, 0)
    apply_activation_checkpointing(model, mode)
    names = [name for name, _ in model.named_parameters()]
    tokens = torch.randint(0, 256, (4, 64), generator=torch.Generator().manual_seed(0))
    with Storages() as storages:
        loss = model(tokens, tokens.roll(-1, 1), STARTS)
    held = storages.bytes_alive()
    loss.backward()
    return loss.item(), [p.grad for p in model.parameters()], held, names


@pytest.fixture(scope="module")
def results():
    return {mode: run(mode) for mode in MODES}


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_the_same_bits(mode, results):
    loss, gradients, _, names = results[mode]
    assert loss == results["none"][0]
    assert names == results["none"][3]
    for ours, theirs in zip(gradients, results["none"][1], strict=True):
        assert torch.equal(ours, theirs)


def test_each_mode_holds_less_than_the_one_before(results):
    none, selective, full = (results[mode][2] for mode in MODES)
    floats = 4 * 4 * 64 * MODEL.num_layers  # bytes of one float32 a token and layer
    # A block's products: q, k, v, attention's output, o, gate, up, down.
    kept = 64 + 32 + 32 + 64 + 64 + 96 + 96 + 64
    assert selective - full >= 0.8 * kept * floats
    # At least two norms' outputs, silu(gate) and its product with up. Of q and k one form is kept.
    assert none - selective >= (64 + 64 + 96 + 96) * floats
