"""The examples run as a user would run them."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(("name", "said"), [("quickstart.py", "0 differ"), ("own_teacher.py", "model.net")])
def test_example_runs(tmp_path, name, said):
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), str(tmp_path / "out")], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert said in result.stdout
