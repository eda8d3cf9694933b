"""Console script llmmesh-edge."""

from services.common.runtime import run
from services.edge.app import build
from services.edge.settings import EdgeSettings


def main() -> None:
    """Runs the edge."""
    run("edge", EdgeSettings, build)


if __name__ == "__main__":
    main()
