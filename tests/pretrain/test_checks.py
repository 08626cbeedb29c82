"""The checks of a run are pure: no torch, no device, nothing read but what they are given."""

from __future__ import annotations

import subprocess
import sys

from tests.patience import limit


def test_the_checks_do_not_import_torch():
    code = "import sys, pretrain.checks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=limit(60)).returncode == 0
