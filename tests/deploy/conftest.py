"""Where the files and tools of the deploy tests are."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def tool() -> Run:
    """Runs a tool of the dev extra; the test is skipped where it is not installed."""

    def run(name: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        here = Path(sys.executable).parent / name
        path = str(here) if here.exists() else shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is not installed: pip install -e .[dev]")
        return subprocess.run(
            [path, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False
        )

    return run


@pytest.fixture(scope="session")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of secrets as `secrets.sh` makes it."""
    directory = tmp_path_factory.mktemp("compose") / "secrets"
    made = subprocess.run(
        ["sh", str(ROOT / "deploy/compose/secrets.sh"), str(directory)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (directory.parent / "printed").write_text(made.stdout)
    return directory
