"""Runs the provider service."""

from services.common.runtime import run
from services.provider.app import build
from services.provider.settings import ProviderSettings


def main() -> None:
    """Entry point of `llmmesh-provider`."""
    run("provider", ProviderSettings, build)


if __name__ == "__main__":
    main()
