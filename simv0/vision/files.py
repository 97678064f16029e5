"""An image tower's weights on this machine: folders, files, and what is wrong with them in one line."""

import json
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from simv0.config.schema import ModelConfig
from simv0.errors import ModelError
from simv0.runtime.digests import tensors_in

log = logging.getLogger("simv0")

CONFIG = "open_clip_config.json"
READ = (".safetensors", ".bin", ".pth")
"""Ends of the names that open_clip looks for in a folder."""
PREFERRED = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
"""Names that open_clip takes before others."""
NAME = "model.vision_encoder_name"


def folder_of(model: ModelConfig) -> Path | None:
    """The folder of a `local-dir:` name."""
    prefix = "local-dir:"
    name = model.vision_encoder_name
    return Path(name.removeprefix(prefix)) if name.startswith(prefix) else None


def local_files(model: ModelConfig) -> list[Path]:
    """The files that an encoder is loaded from, where the config names them by a path.

    Raises:
        OSError: the folder cannot be read.
    """
    folder, file = folder_of(model), _file_of(model)
    if folder is None:
        return [file] if file is not None else []
    return [folder / CONFIG, *_candidates(folder)]


def check_folder(folder: Path) -> None:
    """Refuse a folder that open_clip would not read.

    Raises:
        ModelError: naming what is missing or wrong.
    """
    if not folder.is_dir():
        raise ModelError(f"{NAME}: folder not found: {folder}")
    if not (folder / CONFIG).is_file():
        copies = sorted(folder.glob(f"snapshots/*/{CONFIG}"))
        if copies:
            raise ModelError(f"{NAME}: {folder} is a cache of the hub; write local-dir:{copies[-1].parent}")
        raise ModelError(
            f"{NAME}: {folder} has no {CONFIG}; found {_listed(folder)}; `hf download` a repository that has one, or "
            "write open_clip's name, its tag and the file as model.vision_weights"
        )
    found = _read_config(folder)
    shape = found.get("model_cfg")
    lacking = [
        key for key in ("embed_dim", "vision_cfg", "text_cfg") if not isinstance(shape, dict) or key not in shape
    ]
    if lacking:
        raise ModelError(f"{NAME}: {folder / CONFIG}: describes no CLIP: its model_cfg lacks {', '.join(lacking)}")
    _check_preprocessing(found.get("preprocess_cfg"), folder / CONFIG)
    check_weights_file(_weights_in(folder), NAME)


def check_weights_file(file: Path, key: str) -> None:
    """Refuse anything that is not a file of weights.

    Raises:
        ModelError: naming `key`, the config's.
    """
    if file.is_dir():
        raise ModelError(f"{key}: {file}: is a folder; name the file in it; found {_listed(file)}")
    if file.is_symlink() and not file.exists():
        raise ModelError(
            f"{key}: {file}: is a link to a file that is not here; copy what it points to (`cp -rL` of the hub's cache)"
        )
    if not file.is_file():
        raise ModelError(f"{key}: {file}: file not found")
    with file.open("rb") as stream:
        start = stream.read(20)
    if start == b"version https://git-":
        raise ModelError(
            f"{key}: {file}: is a pointer of Git LFS, not the weights; run `git lfs pull` in its repository"
        )


def warn_of_guesses(model: ModelConfig) -> None:
    """Log what a folder leaves open: which file is read, and how images are prepared (CLIP's mean and std then)."""
    folder = folder_of(model)
    if folder is None:
        return
    file = _weights_in(folder)
    if file.name not in PREFERRED and len(_candidates(folder)) > 1:
        log.warning(
            f"{NAME}: {folder} holds several files of weights ({_listed(folder, READ)}); {file.name} is read; name the "
            "right one open_clip_model.safetensors or open_clip_pytorch_model.bin"
        )
    told = _read_config(folder).get("preprocess_cfg") or {}
    lacking = [key for key in ("mean", "std") if told.get(key) is None]
    if lacking:
        log.warning(
            f"{NAME}: {folder / CONFIG}: preprocess_cfg lacks {' and '.join(lacking)}; CLIP's are taken, and "
            "features are wrong if the weights were trained with others; write them there"
        )


def check_positions(model: ModelConfig, tower: nn.Module) -> None:
    """Report weights of another image size, whose positions open_clip silently stretches to the tower's.

    Raises:
        ModelError: a file; of a folder, whose config may mean it, a warning.
    """
    folder = folder_of(model)
    file = _file_of(model) if folder is None else _weights_in(folder)
    wanted = getattr(tower, "positional_embedding", None)
    if file is None or wanted is None or file.suffix in (".npz", ".npy"):
        return
    found = {name.removeprefix("module."): load for name, load in tensors_in(file)}.get("visual.positional_embedding")
    if found is None or len(found()) == len(wanted):
        return
    told = (
        f"{NAME}: {file}: the weights are of another image size: {len(found())} positions, the tower has {len(wanted)}"
    )
    if folder is None:
        raise ModelError(f"{told}; write the architecture and the tag that the file was trained as")
    log.warning(f"{told}; they are stretched to it")


def cannot_be_loaded(model: ModelConfig, error: Exception) -> ModelError:
    """What open_clip raised, as one line."""
    folder = folder_of(model)
    local, name = _file_of(model), f"{model.vision_encoder_name} (pretrained: {model.vision_pretrained})"
    where = str(folder) if folder is not None else name
    where += f" from {local}" if local else ""
    elsewhere = "; without a network, give the weights as model.vision_weights, or a local folder as local-dir:PATH"
    return ModelError(
        f"{NAME}: {where} cannot be loaded: {_cause(error)}{'' if folder is not None or local else elsewhere}"
    )


def _file_of(model: ModelConfig) -> Path | None:
    named = model.vision_weights or model.vision_pretrained
    return Path(named) if named is not None and Path(named).is_file() else None


def _cause(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "TorchScript" in text:
        return (
            "the file is a TorchScript archive, as OpenAI published its models; take the same weights as safetensors "
            "from the hub"
        )
    if isinstance(error, pickle.UnpicklingError):
        return "the file holds more than tensors, or no weights; save its state_dict as safetensors"
    if "pos_embed" in text:  # open_clip's assertion
        return f"the weights are of another architecture: {text}"
    if "loading state_dict" in text:
        return f"the weights are of another architecture: {_misfit(str(error))}"
    return text[:300] or type(error).__name__


def _misfit(text: str) -> str:
    """The complaints of torch about weights that do not fit, counted."""
    parts = []
    for kind in ("Missing", "Unexpected"):
        listed = re.search(rf"{kind} key\(s\) in state_dict: (.*)", text)
        if listed:
            parts.append(_counted(re.findall(r'"([^"]+)"', listed[1]), kind.lower()))
    sizes = re.findall(r"size mismatch for ([^\s:]+):", text)
    if sizes:
        parts.append(_counted(sizes, "of another size"))
    return ", ".join(parts) or " ".join(text.split())[:200]


def _counted(names: list[str], what: str) -> str:
    first = next((name for name in names if name.startswith("visual.")), names[0])  # the tower that is used
    return f"{len(names)} {what} ({first}{', ...' if len(names) > 1 else ''})"


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{NAME}: {folder / CONFIG}: cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{NAME}: {folder / CONFIG}: expected a mapping with model_cfg and preprocess_cfg")
    return found


def _check_preprocessing(told: Any, path: Path) -> None:
    if told is not None and not isinstance(told, Mapping):
        raise ModelError(f"{NAME}: {path}: preprocess_cfg: expected a mapping with mean and std")
    for key, above in (("mean", -1e9), ("std", 0.0)):
        value = (told or {}).get(key)
        numbers = isinstance(value, list) and len(value) == 3 and all(type(x) in (int, float) for x in value)
        if value is not None and not (numbers and all(x > above for x in value)):
            raise ModelError(
                f"{NAME}: {path}: preprocess_cfg.{key}: expected three numbers{' above 0' * (key == 'std')}, "
                f"found {json.dumps(value)[:60]}"
            )
    kind = (told or {}).get("interpolation")
    if kind not in (None, "bicubic", "bilinear"):
        raise ModelError(f"{NAME}: {path}: preprocess_cfg.interpolation: expected bicubic or bilinear, found {kind!r}")


def _candidates(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in READ)


def _weights_in(folder: Path) -> Path:
    files = _candidates(folder)
    preferred = [folder / name for name in PREFERRED if folder / name in files]
    if not files:
        others = [file.name for file in sorted(folder.iterdir()) if file.suffix in (".pt", ".ckpt", ".npz", ".h5")]
        hint = f"; {others[0]} is not read; name a state_dict open_clip_pytorch_model.bin" if others else ""
        raise ModelError(f"{NAME}: {folder} holds no weights (open_clip_model.safetensors){hint}")
    return preferred[0] if preferred else min(files, key=lambda file: (file.suffix != ".safetensors", file))


def _listed(folder: Path, suffixes: tuple[str, ...] | None = None) -> str:
    names = sorted(file.name for file in folder.iterdir() if suffixes is None or file.suffix in suffixes)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "nothing"
