"""Torture of what training reads: damaged, fuzzed and hostile checkpoints and configs (`torture_train.py` runs it)."""

import io
import pickle
import random
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simv0.config.load import all_keys, load_config
from simv0.config.yaml import dump_yaml
from simv0.errors import CheckpointError, ConfigError
from simv0.model.checkpoint import check_fits, load_checkpoint, seal


def mutated(good: bytes, rng: random.Random) -> bytes:
    """Flip a bit, cut, splice, blank a stretch, or put something in."""
    data, at = bytearray(good), rng.randrange(len(good))
    match rng.randrange(5):
        case 0:
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            del data[at:]
        case 2:
            start = rng.randrange(len(good))
            data[at : at + 40] = good[start : start + 40]
        case 3:
            data[at : at + 64] = bytes(min(64, len(data) - at))
        case _:
            data[at:at] = rng.randbytes(rng.randrange(1, 20))
    return bytes(data)


def mutated_checkpoints(good: Path, count: int, rng: random.Random) -> dict[str, int]:
    """Damage a checkpoint, and seal every second one anew, as an attacker would: one line, or weights that fit."""
    whole, path, ends = good.read_bytes(), good.with_name("mutated.pt"), Counter[str]()
    wanted = load_checkpoint(good).state
    body = whole[: -len(seal(b"\0\0"))] + b"\0\0"  # as it was before it was sealed
    assert seal(body) == whole
    for number in range(count):
        sealed_anew = number % 2 == 1
        data = seal(mutated(body, rng)) if sealed_anew else mutated(whole, rng)
        path.write_bytes(data)
        try:
            found = load_checkpoint(path)
            check_fits(found.state, wanted, "the model", path)
        except CheckpointError as error:
            check_line(str(error), str(path))
            ends["refused"] += 1
        else:
            assert sealed_anew or data == whole, "a damaged checkpoint was taken for good"
            assert all(tensor.isfinite().all() for tensor in found.tensors().values())
            ends["other numbers under a new seal"] += data != whole
    return dict(ends)


def check_line(line: str, start: str) -> None:
    assert line.startswith(start), line
    assert line.isprintable(), line


def mutated_configs(good: str, folder: Path, count: int, rng: random.Random) -> dict[str, int]:
    """Damage a config file: a config, or lines that start with the file's name."""
    path, ends = folder / "mutated.yaml", Counter[str]()
    for _ in range(count):
        path.write_bytes(mutated(good.encode(), rng))
        ends[read_config(path)] += 1
    return dict(ends)


def read_config(path: Path) -> str:
    """Load a config; whatever is wrong with it must be told line by line."""
    try:
        load_config(path)
    except ConfigError as error:
        for line in str(error).splitlines():
            check_line(line, f"{path}:")
        return "refused"
    return "read"


def fuzzed_configs(folder: Path, count: int) -> dict[str, int]:
    """Configs of right keys and wrong values, wrong keys, wrong shapes."""
    path, ends = folder / "fuzzed.yaml", Counter[str]()
    scalar = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text()
        | st.sampled_from(["${HOME}", "${NOT_SET}", "~", "~nobody\0", "hf-hub:x", "local-dir:", "bf16", "-", "1e-4"])
    )
    value = st.recursive(
        scalar, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2)
    )
    sections = {name.split(".")[0] for name in all_keys()}

    def section(name: str) -> Any:
        keys = [key.split(".")[1] for key in all_keys() if key.startswith(f"{name}.")]
        return st.dictionaries(st.sampled_from(keys) | st.text(max_size=5), value, max_size=4) | value

    paths = st.fixed_dictionaries({"train_split_path": st.just("/t"), "val_split_path": st.text(min_size=1)})
    trees = st.fixed_dictionaries(
        {"data": paths | section("data")}, optional={name: section(name) for name in sections - {"data"}}
    )

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(trees)
    def fuzz(tree: dict[str, Any]) -> None:
        path.write_text(dump_yaml(tree), encoding="utf-8")
        ends[read_config(path)] += 1

    fuzz()
    return dict(ends)


def hostile_pickles() -> list[bytes]:
    """Pickles that run code when a plain unpickler reads them, by every opcode that can."""
    calls = [
        ("os", "system", "touch PWNED"), ("posix", "system", "touch PWNED"), ("os", "popen", "touch PWNED"),
        ("os", "unlink", "PWNED"), ("os", "mkdir", "PWNED"), ("os", "putenv", "A"), ("os", "_exit", 7),
        ("subprocess", "Popen", "true"), ("subprocess", "call", "true"), ("subprocess", "getoutput", "touch PWNED"),
        ("builtins", "eval", "open('PWNED', 'w')"), ("builtins", "exec", "open('PWNED', 'w')"),
        ("builtins", "__import__", "antigravity"), ("builtins", "open", "PWNED"), ("builtins", "getattr", "x"),
        ("builtins", "compile", "x"), ("builtins", "input", "x"), ("builtins", "breakpoint", "x"),
        ("importlib", "import_module", "antigravity"), ("runpy", "run_path", "PWNED"), ("pty", "spawn", "true"),
        ("webbrowser", "open", "http://x.invalid"), ("urllib.request", "urlopen", "http://x.invalid"),
        ("socket", "create_connection", ("x.invalid", 1)), ("ctypes", "CDLL", "libc.so.6"), ("code", "interact", "x"),
        ("shutil", "rmtree", "PWNED"), ("tempfile", "mkstemp", "PWNED"), ("pathlib", "Path", "PWNED"),
        ("pickle", "loads", b"cos\nsystem\n(S'touch PWNED'\ntR."), ("marshal", "loads", b"x"), ("types", "CodeType", 1),
        ("operator", "attrgetter", "x"), ("timeit", "timeit", "open('PWNED', 'w')"),
        ("cProfile", "run", "open('PWNED', 'w')"), ("numpy", "load", "PWNED"), ("numpy", "fromfile", "PWNED"),
        ("torch", "load", "PWNED"), ("torch.hub", "load", "x"), ("torch.jit", "load", "PWNED"), ("torch", "vmap", "x"),
        ("torch.serialization", "load", "PWNED"), ("torch._utils", "_rebuild_wrapper_subclass", "x"),
        ("simv0.data.user_class", "import_class", "antigravity.x"),
    ]  # fmt: skip

    def reduce(module: str, name: str, argument: Any) -> bytes:
        return f"c{module}\n{name}\n(".encode() + pickle.dumps(argument, 0)[:-1] + b"tR."

    by_opcode = [
        b"(S'touch PWNED'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch PWNED'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93(S'touch PWNED'\ntR.",  # STACK_GLOBAL
        b"\x80\x02cos\nsystem\n(S'touch PWNED'\nt\x81.",  # NEWOBJ
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncbuiltins\nint\n(S'touch PWNED'\nt}tR.",
        b"\x80\x02ctorch.serialization\nos.system\n(S'touch PWNED'\ntR.",  # a dotted name through a module that is safe
        b"\x80\x02ccollections\nOrderedDict\n)R}S'__class__'\ncos\nsystem\nsb.",  # BUILD
    ]
    return [reduce(*call) for call in calls] + by_opcode


EVENTS: list[str] | None = None


def _listen(event: str, args: tuple[Any, ...]) -> None:
    if EVENTS is not None and not (event == "open" and args[1] in ("r", "rb", None)):
        EVENTS.append(event)


def hostile_checkpoints(path: Path) -> int:
    """Load every hostile pickle in every coat; no audit event may tell of anything but reading. Returns how many."""
    global EVENTS
    sys.addaudithook(_listen)  # for the rest of the process; silent while EVENTS is None
    coats: list[Callable[[bytes], bytes]] = [zipped, lambda raw: zipped(b"\x80\x02}S'meta'\n" + raw[:-1] + b"s."), seal]
    count = 0
    for raw in hostile_pickles():
        for coat in coats:
            path.write_bytes(coat(raw))
            for listen in (False, True):  # the first time, modules may be imported that were not needed before
                EVENTS = [] if listen else None
                try:
                    load_checkpoint(path)
                    raise AssertionError("a hostile checkpoint was taken for good")
                except CheckpointError:
                    heard, EVENTS = EVENTS, None
                unexpected = set(heard or []) - {"object.__getattr__", "pickle.find_class"}
                assert not unexpected, f"{raw!r}: {unexpected}"
            count += 1
    assert not Path("PWNED").exists()
    return count


def zipped(raw: bytes) -> bytes:
    """A sealed file as torch.save writes it around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in (("data.pkl", raw), ("byteorder", b"little"), ("version", b"3\n")):
            file.writestr(f"a/{name}", content)
    return seal(buffer.getvalue())
