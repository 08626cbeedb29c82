"""Packages and extras of Headwater; `constraints.txt` pins the tested set."""

from setuptools import find_packages, setup

EXTRAS = {
    # `train` is the base install: it exists so that every stage can be asked for by name.
    "train": [],
    "clean": ["datatrove>=0.10", "lightgbm>=4.5", "fasttext-numpy2-wheel>=0.9.2"],
    "web": [
        *("datatrove>=0.10", "warcio>=1.7", "faust-cchardet>=2.1", "python-magic>=0.4.27"),
        "trafilatura>=1.8,<1.12",
        "lxml_html_clean>=0.4",
    ],
    "s3": ["s3fs>=2025.3"],
    "finetune": ["transformers>=5.20", "trl>=1.16", "peft>=0.21", "accelerate>=1.15"],
    "eval": ["transformers>=5.20", "lm-eval[hf]>=0.4.13"],
    "chat": ["transformers[serving]>=5.20", "openai>=2.0", "gradio>=6.0"],
    # xllamacpp contains llama.cpp, 34 MB.
    "gguf": [
        *("gguf>=0.17", "transformers>=5.20"),
        "xllamacpp>=2026.10; sys_platform == 'linux'",
    ],
    "fp8": ["torchao>=0.18"],
    "tensorboard": ["tensorboard>=2.19"],
    "cuda": ["flash-attn>=2.8", "torchao>=0.18", "nvidia-ml-py>=12.560"],
    "trackio": ["trackio>=0.40"],
    "dev": [
        "hypothesis>=6.100",
        "import-linter>=2.3",
        "moto[server]>=5.1",
        "mypy>=1.15",
        "psutil>=6",
        "pytest>=8.3",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "ruff>=0.11",
        "zstandard>=0.23",
    ],
}

setup(
    name="headwater",
    version="0.1.0",
    description="Pretrain small language models: raw text in, evaluated chat model out.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(
        include=[
            *("conf*", "pages*", "data_pipeline*", "model*", "pretrain*", "finetune*"),
            *("eval*", "launch*"),
        ]
    ),
    package_data={
        "conf": ["**/*.yaml", "corpus/*.jsonl"],
        "launch": ["slurm/*.j2", "sky/*.j2", "plan/templates/*", "studies/templates/*"],
        "pages": ["templates/*"],
        "data_pipeline": ["inspection/templates/*"],
        "eval": ["report/templates/*", "scores/published/*.yaml"],
    },
    install_requires=[
        "torch>=2.11,<2.16",
        "megatron-core>=0.16",
        "datasets>=4.7",
        "tokenizers>=0.21",
        "wandb>=0.21",
        "hydra-core>=1.3.2",
        "numpy>=2.0",
        "scipy>=1.14",
        "fsspec>=2025.3",
        "idna>=3.7",
        "jinja2>=3.1",
        "pyarrow>=18",
        "rich>=13.9",
        "safetensors>=0.5",
        "gigatoken>=0.10",
        "orjson>=3.10",
        "xxhash>=3.5",
    ],
    extras_require=EXTRAS,
)
