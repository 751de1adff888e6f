"""What the files for deploying say, read as a host or a builder would read them."""

from __future__ import annotations

import json
import re
import shutil
from fnmatch import fnmatch
from modulefinder import ModuleFinder
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent

Json = dict[str, Any]


def load(name: str) -> Json:
    """A YAML file of the root."""
    content: Json = yaml.safe_load((ROOT / name).read_text())
    return content


def load_with_options(name: str) -> Json:
    """A YAML file of the root, with what is commented out in it; a comment that explains begins with "# "."""
    content: Json = yaml.safe_load(re.sub(r"(?m)^( *)#(?! \S|$)", r"\1", (ROOT / name).read_text()))
    return content


def procfile() -> dict[str, str]:
    """The command of each kind of process."""
    lines = (ROOT / "Procfile").read_text().splitlines()
    return {kind: command for kind, _, command in (line.partition(": ") for line in lines)}


def modules_of(*scripts: str) -> set[str]:
    """The files of the root that running these imports, at whatever moment, and they themselves."""
    finder = ModuleFinder([str(ROOT)])
    for script in scripts:
        finder.run_script(str(ROOT / script))
    files = [getattr(module, "__file__", None) for module in finder.modules.values()]
    return {str(Path(file).relative_to(ROOT)) for file in files if file} | set(scripts)


class Stage:
    """What the Dockerfile says from one FROM to the next; `instructions` are pairs such as ("USER", "10001:10001")."""

    def __init__(self, name: str, base: str) -> None:
        self.name = name
        self.base = base
        self.instructions: list[tuple[str, str]] = []

    def all(self, kind: str) -> list[str]:
        """What its instructions of this kind say, in order."""
        return [text for word, text in self.instructions if word == kind]

    def copies(self) -> list[tuple[list[str], str]]:
        """What it takes from the folder that is built, and where each goes."""
        words = [text.split() for text in self.all("COPY") if not text.startswith("--from=")]
        return [(sources, target) for *sources, target in words]


def stages() -> dict[str, Stage]:
    """The stages of the Dockerfile, in order."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text()).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    for line in filter(None, text.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = stage = Stage(name, base)
        else:
            stage.instructions.append((word, rest.strip()))
    return found


def lineage(name: str) -> list[Stage]:
    """A stage after all that it is built upon."""
    known = stages()
    stage = known[name]
    return [*(lineage(stage.base) if stage.base in known else []), stage]


def last(name: str, kind: str) -> str:
    """What holds in an image of all that its stages say with this instruction."""
    return [text for stage in lineage(name) for text in stage.all(kind)][-1]


def command(name: str) -> list[str]:
    """The command of an image, which is in exec form."""
    words: list[str] = json.loads(last(name, "CMD"))
    return words


def healthcheck(name: str) -> list[str]:
    """The command that looks whether an image's process is healthy, which is in exec form."""
    words: list[str] = json.loads(last(name, "HEALTHCHECK").partition("CMD ")[2])
    return words


def unpack(name: str, folder: Path) -> None:
    """Copy into the folder what an image has of this repository, its libraries apart."""
    for stage in lineage(name):
        for sources, target in stage.copies():
            for source in sources:
                destination = folder / target
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, destination, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, destination)


def is_sent_to_builder(path: str) -> bool:
    """Whether .dockerignore lets a path through: the last of its lines that match it, or a folder of it, counts."""
    paths = [PurePosixPath(path), *PurePosixPath(path).parents[:-1]]
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#") and any(_matches(one, line.removeprefix("!")) for one in paths):
            sent = line.startswith("!")
    return sent


def _matches(path: PurePosixPath, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return path.match(pattern.removeprefix("**/"))
    parts = pattern.split("/")
    return len(parts) == len(path.parts) and all(map(fnmatch, path.parts, parts))
