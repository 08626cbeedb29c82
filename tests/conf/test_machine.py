"""`precision=auto`: the rule for every kind of processor, and how speeds are measured."""

import dataclasses

import pytest
import torch

from conf.machine import (
    SIZES,
    Processor,
    Speed,
    bf16_verdict,
    cpu_features,
    fastest,
    fitting_dtype,
    fitting_precision,
    isa_limit,
    matrix_speed,
    package_versions,
    processor,
    slow_warning,
)

AVX2 = frozenset({"avx", "avx2", "f16c"})
AVX512 = AVX2 | {"avx512f", "avx512_f", "avx512_bw", "avx512_vnni"}
KINDS = {
    "AVX2 only": (AVX2, "fp32"),
    "AVX2 with conversions": (AVX2 | {"avx_vnni", "avx_ne_convert"}, "fp32"),
    "AVX-512": (AVX512, "fp32"),
    "AVX-512 BF16": (AVX512 | {"avx512_bf16"}, "bf16"),
    "AMX": (AVX512 | {"amx_tile", "amx_bf16"}, "bf16"),
    "AMX for integers only": (AVX512 | {"amx_tile", "amx_int8"}, "fp32"),
    "Arm": (frozenset({"neon", "fp16_arith"}), "fp32"),
    "Arm with BF16": (frozenset({"neon", "bf16", "i8mm"}), "bf16"),
    "Arm with SVE BF16, as Linux names it": (frozenset({"asimd", "sve", "svebf16"}), "bf16"),
    "nothing known": (frozenset(), "fp32"),
}
ZEN4 = Processor("cpu", "AMD EPYC", AVX512 | {"avx512_bf16"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_cpu_takes_bf16_only_where_it_multiplies_it(kind):
    features, precision = KINDS[kind]
    found = Processor("cpu", "a CPU", features)
    assert fitting_precision(found) == precision
    assert bf16_verdict(found).native == (precision == "bf16")


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((7, 0), "fp32"), ((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16"), ((12, 0), "bf16")],
)
def test_a_cuda_device_takes_bf16_from_compute_capability_8(capability, precision):
    assert fitting_precision(Processor("cuda", "a GPU", capability=capability)) == precision


@pytest.mark.parametrize("native", [True, False])
def test_a_rocm_device_takes_what_torch_says(native):
    found = Processor("cuda", "AMD Instinct", capability=(9, 0), native_bf16=native)
    assert bf16_verdict(found).native is native


@pytest.mark.parametrize(
    ("limit", "precision"),
    [
        ("AVX2", "fp32"),
        ("avx2_vnni", "fp32"),
        ("AVX512_CORE", "fp32"),
        ("AVX512_CORE_BF16", "bf16"),
        ("AVX512_CORE_AMX", "bf16"),
        ("ALL", "bf16"),
        ("no such level", "bf16"),  # oneDNN takes no notice of it
    ],
)
@pytest.mark.parametrize("switch", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_the_switch_of_onednn_counts(switch, limit, precision):
    found = dataclasses.replace(ZEN4, isa_limit=isa_limit({switch: limit}))
    assert fitting_precision(found) == precision
    if precision == "fp32":
        assert f"{switch}={limit} keeps torch from" in bf16_verdict(found).reason


def test_the_new_name_of_the_switch_comes_first():
    both = {"DNNL_MAX_CPU_ISA": "ALL", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert isa_limit(both) == ("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert isa_limit({}) is None


def test_a_torch_without_onednn_has_no_bf16_products():
    found = dataclasses.replace(ZEN4, onednn=False)
    assert fitting_precision(found) == "fp32"
    assert "lacks oneDNN" in bf16_verdict(found).reason


@pytest.mark.parametrize(
    ("stored", "features", "computed"),
    [
        ("bfloat16", AVX2, "float32"),
        ("bfloat16", AVX512 | {"avx512_bf16"}, "bfloat16"),
        ("float16", AVX2, "float32"),
        ("float16", AVX512 | {"avx512_bf16"}, "float32"),
        ("float16", AVX512 | {"amx_fp16"}, "float16"),
        ("float32", AVX512 | {"avx512_bf16"}, "float32"),
        ("float64", AVX2, "float64"),
    ],
)
def test_stored_weights_are_computed_in_a_type_that_is_multiplied(stored, features, computed):
    assert fitting_dtype(stored, Processor("cpu", "a CPU", features)) == computed


def test_a_gpu_computes_fp16_as_it_is_stored():
    assert fitting_dtype("float16", Processor("cuda", "V100", capability=(7, 0))) == "float16"
    assert fitting_dtype("bfloat16", Processor("cuda", "V100", capability=(7, 0))) == "float32"


def test_features_are_what_torch_and_the_kernel_say_together():
    text = "processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\nbugs\t: sysret\n"
    found = cpu_features({"avx2": True, "avx512_f": False, "l2_cache_size": 1}, text)
    assert found == {"avx2", "fpu", "amx_bf16"}
    assert cpu_features({}, "Features\t: asimd bf16\n") == {"asimd", "bf16"}
    assert cpu_features({"bf16": True}, "") == {"bf16"}


def speeds(dtype: str) -> Speed:
    return Speed(1e11 if dtype == "float32" else 2.5e9, 256)


def test_a_type_asked_for_by_name_is_warned_of_with_the_measured_factor():
    slow = Processor("cpu", "a CPU", AVX2)
    said = slow_warning("precision=bf16", "bfloat16", slow, "precision=auto", speeds)
    assert said.startswith("precision=bf16: this CPU has no bf16 units (AVX2 at best)")
    assert "40 times slower than in float32 (measured: 2.5 versus 100 GFLOP/s)" in said
    assert said.endswith("Set precision=auto.")
    assert slow_warning("dtype=float32", "float32", slow, "", speeds) == ""
    assert slow_warning("precision=bf16", "bfloat16", ZEN4, "", speeds) == ""
    assert "fp16 units" in slow_warning("dtype=float16", "float16", ZEN4, "", speeds)


@pytest.mark.parametrize(
    ("flops_per_second", "last"), [(1e12, SIZES[-1]), (2.7e9, 512), (1e8, 256), (4e6, 128)]
)
def test_a_slow_type_is_measured_with_small_matrices(flops_per_second, last):
    now = 0.0

    sizes = []

    def product(size):
        sizes.append(size)

        def multiply():
            nonlocal now
            now += 2 * size**3 / flops_per_second

        return multiply

    speed = fastest(product, SIZES, lambda: now)
    assert speed.size <= last
    assert max(sizes) == last
    assert speed.flops_per_second == pytest.approx(flops_per_second)
    assert now < 3.2


def test_what_a_busy_machine_adds_to_small_products_does_not_count():
    now = 0.0

    def product(size):
        def multiply():
            nonlocal now
            now += size**3 * 2e-12 + (0.04 if size < 512 else 0.0)

        return multiply

    assert fastest(product, SIZES, lambda: now).flops_per_second == pytest.approx(1e12)


def test_the_processor_here_is_described_and_measured():
    found = processor("cpu")
    assert found.name
    assert found.features
    speed = matrix_speed("float32")
    assert speed.flops_per_second > 0
    assert speed.size in SIZES
    assert found == processor(torch.device("cpu"))


def test_a_gpu_is_described_as_torch_knows_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: f"H200 {place.index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    found = processor(torch.device("cuda", 1))
    assert found == Processor("cuda", "H200 1", capability=(9, 0))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert processor("cuda").native_bf16 is True


def test_packages_that_are_not_installed_have_no_version():
    found = package_versions(("numpy", "no-such-package", "torch"))
    assert list(found) == ["numpy", "torch"]
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
