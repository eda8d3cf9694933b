"""What README prints works as it stands there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def block(name: str) -> str:
    """The code between the marks of that name."""
    found = re.search(rf"<!-- {name}:start -->\n```\w*\n(.*?)```\n<!-- {name}:end -->", README.read_text(), re.DOTALL)
    assert found, name
    return found[1]


@pytest.fixture
def home(mesh, tmp_path):
    """A home whose running mesh is ours, and where the project's commands are found first."""
    (tmp_path / ".local/state").mkdir(parents=True)
    (tmp_path / ".local/state/llmmesh").symlink_to(mesh.state)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "HOME": str(tmp_path), "PATH": path} | {"XDG_STATE_HOME": str(tmp_path / ".local/state")}


def run(command: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_client(home):
    *answer, outcome, cost = run([sys.executable, "-c", block("client")], home).split()
    assert answer
    assert int(outcome) > 0
    assert int(cost) >= 0


def test_the_shell_call(home):
    events = run(["bash", "-ec", block("buf")], home)
    kinds = re.findall(r'^\s\s"(started|delta|finished)"', events, re.MULTILINE) or re.findall(
        r'"(started|delta|finished)":', events
    )
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert "delta" in kinds


def test_the_command_line(home):
    assert "saved" in run([sys.executable, "-m", "services.cli", "chat", "How do I return a jacket?"], home)
    costs = json.loads(run([sys.executable, "-m", "services.cli", "costs", "--by", "outcome,model", "--json"], home))
    assert int(costs["acme-shop"]["total"]["requests"]) > 0


def test_the_client_needs_the_base_install_alone():
    imported = set(re.findall(r"^(?:from|import) ([\w, ]+)", block("client"), re.MULTILINE))
    names = {name.strip().split(".")[0] for line in imported for name in line.split(",")}
    assert names == {"grpc", "json", "pathlib", "llmmesh"}
