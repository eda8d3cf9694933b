"""Runs the engine service."""

from services.common.runtime import run
from services.engine.app import build
from services.engine.settings import EngineSettings


def main() -> None:
    """Entry point of `llmmesh-engine`."""
    run("engine", EngineSettings, build)


if __name__ == "__main__":
    main()
