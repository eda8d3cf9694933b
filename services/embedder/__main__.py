"""Starts the embedder."""

from services.common.runtime import run
from services.embedder.app import build
from services.embedder.settings import EmbedderSettings


def main() -> None:
    """Console script llmmesh-embedder."""
    run("embedder", EmbedderSettings, build)


if __name__ == "__main__":
    main()
