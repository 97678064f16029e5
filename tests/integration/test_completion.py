"""Shell completion, by bash itself with the script that `simv0 --show-completion bash` prints."""

import os
import subprocess
import sys
from pathlib import Path

COMPLETE = """
eval "$(simv0 --show-completion bash)"
complete_line() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _simv0_completion simv0
    echo "${COMPREPLY[*]}"
}
complete_line simv0 ca
complete_line simv0 evaluate --split ""
complete_line simv0 train --set training.l
complete_line simv0 train --config conf
"""


def test_bash_completes_commands_splits_and_config_keys(tmp_path: Path) -> None:
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    found = subprocess.run(["bash", "-c", COMPLETE], env=env, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == [
        "cache-vis",
        "val train calibration",
        "training.lr= training.lr_scale= training.llm_control=",
        "",  # a path: bash completes it by itself
    ]
    assert found.stderr == ""


def test_completion_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom cli.main import app\n"
        "try: app(prog_name='simv0')\nexcept SystemExit: print('torch' in sys.modules)"
    )
    asked = {"_SIMV0_COMPLETE": "complete_bash", "COMP_WORDS": "simv0 train --set training.ep", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["training.epochs=", "False"]
