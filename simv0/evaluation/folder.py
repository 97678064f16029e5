"""Where an evaluation is written: one of other windows, or of another checkpoint, replaces nothing."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

from simv0.config.schema import Config
from simv0.disk.files import check_out
from simv0.errors import ConfigError

FILES = ("metrics.json", "predictions.jsonl", "report.html")


def evaluation_folder(
    ckpt: Path,
    root: Path,
    trained: dict[str, Any],
    config: Config,
    data: str | None,
    split: str,
    out: Path | None = None,
) -> tuple[Path, dict[str, Any]]:
    """`evaluation/` for best.pt on the val split that it was chosen on, else `evaluation/<name>/`.

    The name says what differs, such as `last`, `train`, `test` (of `--data ../test.jsonl`), `last-test`; `test-2` where
    `test` holds another file of that name.

    Args:
        ckpt: the checkpoint.
        root: its run, or the folder that it lies in.
        trained: the `data` section that it was trained with.
        config: the one to evaluate with.
        data: what `--data` says.
        split: "val", "train" or "calibration".
        out: what `--out` says: the folder, whatever the rest is.

    Returns:
        The folder, and the source of the evaluation, which `metrics.json` keeps.
    """
    section = config.data
    source: dict[str, Any] = {
        "checkpoint": ckpt.name,
        "data": section.splits[split] if data is None else _absolute(data),
        "dataset_class_path": section.dataset_class_path,
        "dataset_kwargs": dict(section.dataset_kwargs),
    }
    if out is not None:
        check_chosen(out, {"--data": None if data is None else Path(data), "--ckpt": ckpt})
        return out, source
    parts = [] if ckpt.name == "best.pt" else [_plain(ckpt.stem)]
    if data is not None or not _is_trained_on(source, trained, split):
        parts.append(_plain(Path(source["data"]).name))
    elif split != "val":
        parts.append(split)
    folder = root / "evaluation"
    if parts:
        numbered = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        names = ("-".join(parts) + number for number in numbered)
        folder = next(folder / name for name in names if _is_free(folder / name, source))
    return folder, source


def check_chosen(out: Path, inputs: dict[str, Path | None]) -> None:
    """Refuse a folder for `--out` that is a file, whose parent is missing, or which holds a file to be read.

    Raises:
        ConfigError: naming the option.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {out}: is a file; name a folder for {', '.join(FILES)}")
    if not out.is_dir():
        check_out(out, {})
        return
    for name in FILES:
        check_out(out / name, inputs)


def _is_trained_on(source: dict[str, Any], trained: dict[str, Any], split: str) -> bool:
    """Whether a config's own split is that of the run; a file that has moved keeps its name."""
    before = trained.get(f"{split}_split_path")
    if any(trained.get(key) != source[key] for key in ("dataset_class_path", "dataset_kwargs")):
        return False
    if not isinstance(before, str) or before == source["data"]:
        return True
    return Path(before).name == Path(source["data"]).name and not Path(before).exists()


def _absolute(data: str) -> str:
    return data if "://" in data else str(Path(data).expanduser().resolve())


def _plain(name: str) -> str:
    """A file's name without its endings, as a folder's name anywhere."""
    for ending in (".parts", ".h5", ".jsonl", ".json", ".csv"):
        name = name.removesuffix(ending)
    return re.sub(r"[^\w.-]+", "_", name).strip("._-")[:60] or "data"


def _is_free(folder: Path, source: dict[str, Any]) -> bool:
    """Whether a folder holds no evaluation, or one of the same source."""
    try:
        content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return not folder.exists() or folder.is_dir()
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("source") == source
