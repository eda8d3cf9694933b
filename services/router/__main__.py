"""Starts the router."""

from services.common.runtime import run
from services.router.app import build
from services.router.settings import RouterSettings


def main() -> None:
    """Console script `llmmesh-router`."""
    run("router", RouterSettings, build)


if __name__ == "__main__":
    main()
