"""`python -m benchmarks.hops.vendor`: an OpenAI-like vendor that answers at once, so that the mesh's own time is what is left."""

import argparse
import asyncio

from tests.vendors.openai_like import OpenAILike


def main() -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(_serve(parser.parse_args().port))


async def _serve(port: int) -> None:
    async with OpenAILike(port=port) as vendor:
        vendor.keep_requests = False
        await asyncio.Event().wait()


if __name__ == "__main__":
    main()
