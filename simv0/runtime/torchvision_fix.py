"""Let `import torchvision` work beside a CPU-only torch.

PyPI has no CPU build of torchvision for Linux: the one it has dies on import with "operator torchvision::nms does not
exist", because its compiled operators cannot be loaded. open_clip needs torchvision's transforms, and transformers
imports it when it is there; neither calls those operators. Declaring the two missing schemas is enough. Imported for
its effect, before open_clip or transformers; does nothing where the operators exist.
"""

import importlib.util

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _declare_missing_operators() -> torch.library.Library | None:
    """Returns the library that holds the declarations: they last as long as it does."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
    else:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(name + _SCHEMA)  # type: ignore[no-untyped-call]
    return library


_library = _declare_missing_operators()
