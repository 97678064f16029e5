"""What open_clip knows about a pretrained tag besides its weights: mean, std, interpolation and activation.

A file of weights contains none of these, and features made with the wrong ones are silently wrong: so they come from
the tag, or from all tags of the architecture if these agree.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simv0.config.schema import ModelConfig
from simv0.errors import ModelError
from simv0.vision.files import check_folder, check_weights_file, folder_of


@dataclass(frozen=True)
class TagFacts:
    """How images are prepared for a tag's weights; None: as open_clip does it by default.

    Attributes:
        quick_gelu: whether the tower was trained with QuickGELU though its architecture does not say so.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    quick_gelu: bool = False

    def __str__(self) -> str:
        """For people."""
        gelu = ", QuickGELU" if self.quick_gelu else ""
        return f"mean {self.mean or 'default'}, {self.interpolation or 'bicubic'}{gelu}"


def check_names(model: ModelConfig) -> None:
    """Refuse a model, a tag or a file of weights that cannot be found or understood; names with a schema bring all.

    Raises:
        ModelError: naming those that open_clip knows.
    """
    import open_clip

    name, tag, folder = model.vision_encoder_name, model.vision_pretrained, folder_of(model)
    if folder is not None:
        check_folder(folder)
    if name.startswith(("local-dir:", "hf-hub:")):
        return
    plain = name.replace("/", "-")
    names, tags = open_clip.list_models(), open_clip.list_pretrained_tags_by_model(plain)
    if plain not in names:
        close = difflib.get_close_matches(name, names, n=3) or ["local-dir:PATH for a folder of your own"]
        raise ModelError(f"model.vision_encoder_name: open_clip has no model {name}; did you mean {', '.join(close)}?")
    known = ", ".join(tags) or "it has none"
    if tag is None:
        raise ModelError(
            f"model.vision_pretrained: {name} without a pretrained tag would have random weights; "
            f"write one of its tags ({known})"
        )
    if tag not in tags and not Path(tag).is_file():
        raise ModelError(f"model.vision_pretrained: {name} has no tag {tag!r}; write one of its tags ({known})")
    if model.vision_weights is not None and tag not in tags:
        raise ModelError(
            f"model.vision_pretrained: beside model.vision_weights write the tag that the file was trained as ({known})"
        )
    if model.vision_weights is not None:
        check_weights_file(Path(model.vision_weights), "model.vision_weights")
    elif tag not in tags:
        check_weights_file(Path(tag), "model.vision_pretrained")


def facts_of(model: ModelConfig) -> TagFacts:
    """How images are prepared for the weights that a config names.

    Raises:
        ModelError: a bare file of weights, of an architecture whose tags differ in that.
    """
    import open_clip

    name, tag = model.vision_encoder_name.replace("/", "-"), model.vision_pretrained
    if tag is None:
        return TagFacts()
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag in tags:
        return _facts(open_clip.get_pretrained_cfg(name, tag))
    kinds = {_facts(open_clip.get_pretrained_cfg(name, other)): other for other in tags}
    if len(kinds) == 1:
        return next(iter(kinds))
    if not kinds:
        raise ModelError(
            f"model.vision_pretrained: {tag} is a file, which does not say how {name} prepares images, nor does {name} "
            "have tags; write local-dir:PATH of a folder with the file and an open_clip_config.json that does"
        )
    ways = "; ".join(f"{other}: {facts}" for facts, other in kinds.items())
    raise ModelError(
        f"model.vision_pretrained: {tag} is a file, which does not say how {name} prepares images ({ways}); write the "
        "tag it was trained as, and the file as model.vision_weights"
    )


def recorded_facts(trained: Mapping[str, Any]) -> TagFacts:
    """How images were prepared for the features that a checkpoint was trained on, by its encoder's identity."""
    said = trained.get("vision_preprocess")
    said = said if isinstance(said, Mapping) else {}
    mean, std = (_three_numbers(said.get(key)) for key in ("mean", "std"))
    kind = said.get("interpolation")
    return TagFacts(
        mean, std, kind if kind in ("bicubic", "bilinear") else None, trained.get("vision_quick_gelu") is True
    )


def recorded_decode(trained: Mapping[str, Any]) -> str:
    """How pictures were decoded for those features; what was made before it was recorded is "full"."""
    said = trained.get("vision_preprocess")
    return str(said.get("decode", "full")) if isinstance(said, Mapping) else "full"


def _facts(tag: Mapping[str, Any]) -> TagFacts:
    mean, std = (tuple(tag[key]) if tag.get(key) else None for key in ("mean", "std"))
    return TagFacts(mean, std, tag.get("interpolation"), bool(tag.get("quick_gelu")))


def _three_numbers(value: Any) -> tuple[float, ...] | None:
    """Mean or std, if that is what a file holds: a wrong one is then told by comparing."""
    good = isinstance(value, list) and len(value) == 3 and all(type(x) is float and 0 <= x <= 1 for x in value)
    return tuple(value) if good else None
