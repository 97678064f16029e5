"""What a command's CPU seconds go to until its first useful work; `benchmarks.startup` runs it in a fresh process.

    python benchmarks/startup_marks.py REPORT [-m MODULE | -c CODE | FILE] ARGUMENTS

First useful work: a window reaches the model, or `cache-vis` begins with its shards; then the process ends. Other
commands run to their end. Every second is booked once, to the innermost of what is going on; imports by package,
with what torch imports counted as torch's, and torch's compiler (`torch._dynamo` and the like, with sympy) by itself.
"""

import functools
import importlib._bootstrap as machinery
import json
import os
import runpy
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

BOOKED = {
    "simv0.vision.encoder": {"load_encoder": "networks"},
    "simv0.llm.load": {"load_llm": "networks"},
    "simv0.predict": {"prepare_llm": "networks", "prepare_encoder": "networks"},
    "simv0.runtime.digests": {"weights_digest": "digests", "tensors_digest": "digests", "files_digest": "digests"},
    "simv0.training.splits": {"open_split": "data", "split_digest": "data"},
    "simv0.data.source": {"open_source": "data"},
    "simv0.data.labels": {"read_labels": "data", "check_windows": "data"},
    "simv0.features.identity": {"content_digest": "data"},
}
"""Module -> function -> what its seconds are booked to."""
COMPILER = "import torch's compiler"
USEFUL = {
    "simv0.model.network": ("SimV0Model", "forward"),
    "simv0.predict": ("Predictor", "judge"),
    "cache.shards": ("ShardWork", "run"),
}
"""Module -> class and method: the first call ends the measurement."""


class Account:
    """CPU seconds of the process, by what is going on in its main thread."""

    def __init__(self, report: Path) -> None:
        self.report, self.began = report, time.perf_counter()
        self.at = time.process_time()
        self.spent = Counter({"python": self.at})
        self.open = ["rest"]

    def _book(self) -> None:
        now = time.process_time()
        self.spent[self.open[-1]] += now - self.at
        self.at = now

    def during(self, kind: str, call: Any, *arguments: Any, **named: Any) -> Any:
        """Call it, booked to `kind`."""
        if threading.current_thread() is not threading.main_thread():
            return call(*arguments, **named)
        self._book()
        self.open.append(kind)
        try:
            return call(*arguments, **named)
        finally:
            self._book()
            self.open.pop()

    def write(self) -> None:
        """The report: CPU seconds by kind, and wall seconds."""
        self._book()
        self.report.write_text(json.dumps({"cpu": self.spent, "wall": time.perf_counter() - self.began}))


def kind_of_import(name: str, around: str) -> str:
    """What importing a module is booked to, in the midst of `around`."""
    if around in ("import torch", COMPILER):
        return around
    package = name.partition(".")[0]
    compiler = package == "sympy" or (package == "torch" and "torch" in sys.modules)
    return COMPILER if compiler else f"import {package}"


def watch_imports(account: Account) -> None:
    """Book every import, and the functions of a module as soon as it is there."""
    load = machinery._find_and_load  # type: ignore[attr-defined]

    def booked(name: str, import_: Any) -> Any:
        module = account.during(kind_of_import(name, account.open[-1]), load, name, import_)
        for function, kind in BOOKED.get(name, {}).items():
            call = getattr(module, function, None)
            if call is not None and not hasattr(call, "booked"):
                wrapped: Any = functools.wraps(call)(functools.partial(account.during, kind, call))
                wrapped.booked = True
                setattr(module, function, wrapped)
        if name in USEFUL:
            owner, method = getattr(module, USEFUL[name][0]), USEFUL[name][1]
            setattr(owner, method, lambda *_, **__: (account.write(), os._exit(0)))
        return module

    machinery._find_and_load = booked  # type: ignore[attr-defined]


def main() -> None:
    report, how, *arguments = sys.argv[1:]
    account = Account(Path(report))
    watch_imports(account)
    sys.path[0] = ""  # as `python -m` has it
    try:
        if how == "-c":
            exec(arguments[0], {"__name__": "__main__"})
        elif how == "-m":
            sys.argv = arguments
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [how, *arguments]
            runpy.run_path(how, run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise
    account.write()


if __name__ == "__main__":
    main()
