"""Starts the cache."""

from services.cache.app import build
from services.cache.settings import CacheSettings
from services.common.runtime import run


def main() -> None:
    """Console script llmmesh-cache."""
    run("cache", CacheSettings, build)


if __name__ == "__main__":
    main()
