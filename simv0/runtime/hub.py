"""Whether the weights that a config names by a hub name are on this machine or can be downloaded."""

import functools
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlparse

from simv0.config.schema import ModelConfig
from simv0.errors import ModelError

LLM_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ENCODER_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
PATIENCE = 3.0
"""Seconds to wait for the hub to answer."""


def check_llm_at_hand(name: str, revision: str | None) -> None:
    """Refuse a hub LLM that is neither on this machine nor reachable: the hub's client would retry for minutes.

    Raises:
        ModelError: naming it.
    """
    if _is_hub_name(name) and not _any_here(name, LLM_WEIGHTS, revision):
        _refuse_offline("model.llm_name_or_path", f"{name} is not a local folder, and its weights", name)


def check_encoder_at_hand(model: ModelConfig) -> None:
    """Refuse an encoder whose weights are neither on this machine nor reachable, for the same reason.

    Raises:
        ModelError: naming it.
    """
    repository, files = _repository_of(model)
    if not repository:
        return
    name = model.vision_encoder_name
    what, whole, instead = "weights", _any_here(repository, files, None), "give the file as model.vision_weights"
    if name.startswith("hf-hub:"):
        what, instead = "weights and the open_clip_config.json", "give a folder as local-dir:PATH"
        whole = whole and _any_here(repository, ("open_clip_config.json",), None)
    if not whole:
        _refuse_offline("model.vision_encoder_name", f"the {what} of {name} ({repository})", repository, instead)


def encoder_files_in_cache(model: ModelConfig) -> list[Path]:
    """An encoder's files in the hub's cache and the name of the version that is used; none where they are elsewhere."""
    from huggingface_hub import try_to_load_from_cache

    repository, names = _repository_of(model)
    if not repository:
        return []
    found = [try_to_load_from_cache(repository, name) for name in (*names, "open_clip_config.json")]
    files = [Path(file) for file in found if isinstance(file, str)]
    return files and [*files, files[0].parents[2] / "refs" / "main"]


def _repository_of(model: ModelConfig) -> tuple[str, list[str]]:
    """The hub's repository of an encoder's weights and the names they may have there; "" where they are elsewhere."""
    name, tag = model.vision_encoder_name, model.vision_pretrained
    if name.startswith("local-dir:") or model.vision_weights or (tag is not None and Path(tag).is_file()):
        return "", []
    repository, files = name.removeprefix("hf-hub:"), list(ENCODER_WEIGHTS)
    if repository == name:
        import open_clip

        found = open_clip.get_pretrained_cfg(name, tag or "")
        repository, _, file = str(found.get("hf_hub", "")).rpartition("/")  # none: a plain address, or an unknown name
        files = [file.rpartition(".")[0] + ".safetensors", file] if file else files
    return repository, files


def pretrained_folder(name: str, revision: str | None, files: Sequence[str]) -> Path:
    """`name` itself where it is a path, else those files of a hub repository: downloaded, or as they lie in its cache
    where there is no network.

    Raises:
        ModelError: no such repository or revision, or neither cached nor reachable.
    """
    if not _is_hub_name(name):
        return Path(name)
    from huggingface_hub import constants, snapshot_download

    away = constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT)
    if away and not all(_any_here(name, (file,), revision) for file in files):
        _refuse_offline("from_pretrained", f"{name} is not a local folder, and its files", name, "give a local folder")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files), local_files_only=away))
    except Exception as error:  # whatever its client makes of a name, an answer or a lost network
        said = " ".join(str(error).split())
        at = f" at revision {revision}" if revision else ""
        raise ModelError(
            f"{name}{at}: not a local folder, and it could not be fetched from the hub; check the name, the revision "
            f"and the network ({said[:150]})"
        ) from error


def _is_hub_name(name: str) -> bool:
    return name.count("/") <= 1 and not name.startswith((".", "~", "/")) and not Path(name).exists()


def _any_here(repository: str, files: Sequence[str], revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    try:
        return any(isinstance(try_to_load_from_cache(repository, file, revision=revision), str) for file in files)
    except ValueError:  # not a name on the hub: the loader reports that
        return True


def _refuse_offline(key: str, what: str, repository: str, instead: str = "give a local folder") -> None:
    from huggingface_hub import constants

    host = urlparse(constants.ENDPOINT).hostname or constants.ENDPOINT
    if constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{host} cannot be reached"
        raise ModelError(
            f"{key}: {what} are not on this machine ({constants.HF_HUB_CACHE}) and {why}; check the name, run "
            f"`hf download {repository}` where there is a network, or {instead}"
        )


@functools.cache
def _reachable(endpoint: str) -> bool:
    """Whether a server answers; assumed behind a proxy, where there is no quick way to tell."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urlparse(endpoint)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or endpoint, port), PATIENCE).close()
    except OSError:
        return False
    return True
