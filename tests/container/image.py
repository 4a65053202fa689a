# [Task]: T062 [From]: specs/requirements.md
"""The Dockerfile, carried out one instruction after another in folders.

It understands what the Dockerfile uses. Anything else is an error, so that no step is left out.
"""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from string import Template

from .debian import entering, network_variables

# As the image python:slim sets it.
_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


class BuildError(Exception):
    """A RUN failed. The message is what it printed."""


@dataclass
class Image:
    """A stage, made or in the making: its folder, and what its instructions have set."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    folder: str = "/"
    user: str = ""
    health_check: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def path(self, inside: str) -> Path:
        """Where on this machine lies what the image calls so."""
        return Path(f"{self.root}{PurePosixPath(self.folder, inside)}")

    def entering(
        self, command: Sequence[str], *, volume: Path | None = None, read_only: bool = False
    ) -> list[str]:
        return entering(
            self.root,
            command,
            folder=self.folder,
            user=self.user,
            volume=volume,
            read_only=read_only,
        )

    def run(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """What the command printed, standard error included, and its status."""
        return subprocess.run(
            self.entering(command),
            env={**self.environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )


def copy(source: Path, target: Path, *options: str) -> None:
    """A file or a folder with its owners, modes and times, as a layer keeps them."""
    subprocess.run(
        ["cp", "--archive", "--no-target-directory", *options, source, target], check=True
    )


@dataclass
class Build:
    """`docker build` of a context. `images` are the folders of those that are not made in it."""

    context: Path
    folder: Path
    images: Mapping[str, Path]
    arguments: Mapping[str, str] = field(default_factory=dict)
    _stages: dict[str, Image] = field(default_factory=dict)
    _declared: dict[str, str] = field(default_factory=dict)

    def last_stage(self) -> Image:
        """Carry out all instructions. Raises BuildError."""
        steps: dict[str, Callable[[str], None]] = {
            "ARG": self._declare,
            "CMD": self._set_command,
            "COPY": self._copy,
            "ENV": self._set_environment,
            # It says something and does nothing.
            "EXPOSE": lambda _: None,
            "FROM": self._begin,
            "HEALTHCHECK": self._set_health_check,
            "RUN": self._run,
            "USER": self._set_user,
            "WORKDIR": self._set_folder,
        }
        for instruction, rest in instructions(self.context):
            steps[instruction](rest)
        return self._stage

    @property
    def _stage(self) -> Image:
        return list(self._stages.values())[-1]

    def _begin(self, rest: str) -> None:
        source, _, name = rest.partition(" AS ")
        before = self._stages.get(source) or Image(self.images[source])
        root = self.folder / f"stage-{len(self._stages)}"
        copy(before.root, root)
        self._declared = {}
        self._stages[name or root.name] = Image(
            root, dict(before.environment), before.folder, before.user
        )

    def _declare(self, rest: str) -> None:
        name, _, default = shlex.split(rest)[0].partition("=")
        self._declared[name] = self.arguments.get(name, default)

    def _set_command(self, rest: str) -> None:
        self._stage.command = json.loads(rest)

    def _set_environment(self, rest: str) -> None:
        # All of one instruction are expanded by what was set before it.
        before = dict(self._stage.environment)
        for assignment in shlex.split(rest):
            name, _, value = assignment.partition("=")
            self._stage.environment[name] = Template(value).substitute(before)

    def _set_health_check(self, rest: str) -> None:
        self._stage.health_check = json.loads(rest.partition(" CMD ")[2])

    def _set_user(self, rest: str) -> None:
        self._stage.user = rest

    def _set_folder(self, rest: str) -> None:
        self._stage.folder = str(PurePosixPath(self._stage.folder, rest))
        self._stage.path(".").mkdir(parents=True, exist_ok=True)

    def _run(self, rest: str) -> None:
        # A cache is an empty folder the first time.
        command = re.sub(r"^--mount=type=cache,target=\S+\s+", "", rest)
        assert not command.startswith("--"), command
        environment = {**network_variables(), **self._declared, "HOME": "/root"}
        done = self._stage.run(["/bin/sh", "-c", command], environment)
        if done.returncode:
            raise BuildError(done.stdout)

    def _copy(self, rest: str) -> None:
        *sources, target = shlex.split(rest)
        origin = sources.pop(0).removeprefix("--from=") if sources[0].startswith("--from=") else ""
        for source in sources:
            assert not source.startswith("--"), source
            if not origin:
                self._copy_from_context(source, target)
            elif origin in self._stages:
                self._copy_as_roots(self._stages[origin].path(source), target)
            else:
                self._copy_as_roots(Path(f"{self.images[origin]}{source}"), target)

    def _copy_as_roots(self, source: Path, target: str) -> None:
        copy(source, self._stage.path(target), "--no-preserve=ownership")

    def _copy_from_context(self, source: str, target: str) -> None:
        """One file into a folder, or with `.` whatever is not ignored."""
        path = self.context / source
        ignored = _ignored((self.context / ".dockerignore").read_text())
        for file in path.rglob("*") if path.is_dir() else [path]:
            name = file.relative_to(self.context)
            if file.is_file() and not ignored(name):
                copied = self._stage.path(target) / name
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, copied)


def instructions(context: Path) -> Iterator[tuple[str, str]]:
    """The Dockerfile's instructions, each with what follows it on a line."""
    lines = (context / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if line and not line.startswith("#"))
    for line in text.replace("\\\n", " ").splitlines():
        instruction, _, rest = line.partition(" ")
        yield instruction, rest.strip()


def _ignored(dockerignore: str) -> Callable[[Path], bool]:
    """Whether a path stays out: the last line that means it, or a folder around it, decides."""
    patterns = [line for line in dockerignore.splitlines() if line and not line.startswith("#")]

    def ignored(path: Path) -> bool:
        out = False
        for pattern in patterns:
            meant = pattern.removeprefix("!")
            if any(part.full_match(meant) for part in (path, *path.parents)):
                out = meant == pattern
        return out

    return ignored
