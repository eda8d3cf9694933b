"""Starts the compressor."""

from services.common.runtime import run
from services.compressor.app import build
from services.compressor.settings import CompressorSettings


def main() -> None:
    """Console script `llmmesh-compressor`."""
    run("compressor", CompressorSettings, build)


if __name__ == "__main__":
    main()
