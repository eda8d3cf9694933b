"""Generated files: stubs out of protos/ and docs/configuration.md out of the settings classes.

`python -m services.cli.generate` writes them; with --check it fails when what is committed differs.
"""

import difflib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pydantic_core import PydanticUndefined

from services.common.settings import ServiceSettings

ROOT = Path(__file__).parents[2]
STUBS = Path("protos/gen")
CONFIGURATION = Path("docs/configuration.md")
SERVICES = ("edge", "embedder", "cache", "router", "compressor", "provider", "engine")

_HEAD = """# Configuration

Every service is configured by environment variables alone. Unknown `LLMMESH_<SERVICE>_*` names are an error at start.
Lists and maps are JSON. Tracing follows the standard `OTEL_*` variables of the OpenTelemetry SDK and is on when
`OTEL_EXPORTER_OTLP_ENDPOINT` is set. This page is generated from the settings classes: `make protos`.
"""


def main() -> int:
    """Writes or checks."""
    if "--check" not in sys.argv[1:]:
        _generate_stubs(ROOT / STUBS)
        (ROOT / CONFIGURATION).write_text(configuration(), encoding="utf-8")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        _generate_stubs(fresh)
        stale = _differences(fresh, ROOT / STUBS)
    if configuration() != (ROOT / CONFIGURATION).read_text(encoding="utf-8"):
        stale.append(str(CONFIGURATION))
    for name in stale:
        print(f"{name} is not what the sources say; run `make protos`", file=sys.stderr)
    return 1 if stale else 0


def _generate_stubs(out: Path) -> None:
    """Runs buf. The plugins are those of the Python that runs us."""
    binaries = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    template = (ROOT / "buf.gen.yaml").read_text(encoding="utf-8").replace(f"out: {STUBS}", f"out: {out}")
    subprocess.run(["buf", "generate", "--template", template], cwd=ROOT, env=env, check=True, capture_output=True)
    shutil.copy(ROOT / "protos" / "py.typed", out / "llmmesh" / "py.typed")


def _differences(fresh: Path, committed: Path) -> list[str]:
    def files(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.suffix in (".py", ".pyi", ".typed")
        }

    new, old = files(fresh), files(committed)
    for name in sorted(new.keys() & old.keys()):
        if new[name] != old[name]:
            diff = difflib.unified_diff(old[name].decode().splitlines(), new[name].decode().splitlines(), lineterm="")
            print("\n".join(list(diff)[:20]), file=sys.stderr)
    return [str(STUBS / name) for name in sorted(new.keys() | old.keys()) if new.get(name) != old.get(name)]


def configuration() -> str:
    """The page of all settings."""
    pages = [_HEAD]
    shared = ServiceSettings.model_fields
    pages.append("\n## Every service\n\n" + _table("LLMMESH_<SERVICE>_", ServiceSettings, set()))
    for service in SERVICES:
        module = importlib.import_module(f"services.{service}.settings")
        kind: type[ServiceSettings] = getattr(module, f"{service.capitalize()}Settings")
        pages.append(f"\n## {service}\n\n" + _table(f"LLMMESH_{service.upper()}_", kind, set(shared)))
    return "".join(pages)


def _table(prefix: str, kind: type[ServiceSettings], skip: set[str]) -> str:
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in kind.model_fields.items():
        if name in skip:
            continue
        lines.append(
            f"| `{prefix}{name.upper()}` | {_default(field.get_default(call_default_factory=True))} | {field.description} |"
        )
    return "\n".join(lines) + "\n"


def _default(value: object) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "unset"
    if isinstance(value, Path):
        # Shipped files and the user's folders, without the paths of the machine that wrote the page: either may hold the other.
        home = Path.home()
        roots = [root for root in sorted((ROOT, home), key=lambda root: len(root.parts)) if value.is_relative_to(root)]
        match roots[-1:]:
            case [root] if root == home:
                return f"`~/{value.relative_to(home)}`"
            case [root]:
                return f"`{value.relative_to(root)}` (shipped)"
            case _:
                return f"`{value}`"
    text = str(value.get_secret_value() if hasattr(value, "get_secret_value") else value)
    return f"`{text}`" if text else "empty"


if __name__ == "__main__":
    sys.exit(main())
