"""The type of the settings that adapters convert."""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]
"""The fields of a `ModelConfig` or of a config.json, by name."""
