"""How a command ends: errors that have a message for people become one line and status 1."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from services.cli.mesh import MeshError
from services.common.yaml_file import ConfigError


@contextmanager
def in_words() -> Iterator[None]:
    """Surrounds a command; an error that has a message for people ends it with status 1."""
    try:
        yield
    except (MeshError, ConfigError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def run(work: Coroutine[object, object, None]) -> None:
    """Runs a command of its own loop, with its errors in words."""
    with in_words():
        asyncio.run(work)
