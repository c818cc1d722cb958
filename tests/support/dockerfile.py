"""Read a Dockerfile, and carry its steps out without a container engine.

`parse` reads the part of the language that our files use and refuses the rest. `build` runs every RUN step as a
script of this machine, in a scratch folder that stands in for `/`: absolute paths below MAPPED point into it, the base
image is this machine's own Python, and `apt-get` steps are left out. What an engine adds on top (layers, another libc,
another root) is not shown.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

MAPPED: Final = ("/opt", "/src", "/var/cache")
"""Folders of an image that a build without engine can stand in for."""
KEYWORDS: Final = frozenset({"ARG", "FROM", "ENV", "WORKDIR", "RUN", "COPY", "LABEL", "USER", "EXPOSE", "ENTRYPOINT"})
_IMAGE_PATH: Final = re.compile(rf"(?<![\w./}}-])(?:{'|'.join(MAPPED)})(?=[/:\s\"']|$)")
_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its continuation lines joined."""

    line: int
    keyword: str
    text: str
    flags: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        """The text split as a shell would, or the items of its JSON form."""
        return [str(item) for item in json.loads(self.text)] if self.text.startswith("[") else shlex.split(self.text)

    @property
    def pairs(self) -> dict[str, str]:
        """Names and values of ARG, ENV and LABEL; a name without value has an empty one."""
        return {name: value for name, _, value in (word.partition("=") for word in self.words)}


@dataclass(frozen=True, slots=True)
class Stage:
    """What follows one FROM."""

    base: str
    name: str
    instructions: tuple[Instruction, ...]

    def all_of(self, keyword: str) -> list[Instruction]:
        """The stage's instructions of one kind."""
        return [instruction for instruction in self.instructions if instruction.keyword == keyword]

    def last_of(self, keyword: str) -> Instruction:
        """The one that counts. Raises IndexError."""
        return self.all_of(keyword)[-1]

    def merged(self, keyword: str) -> dict[str, str]:
        """Every pair of every ARG, ENV or LABEL of the stage."""
        return {name: value for item in self.all_of(keyword) for name, value in item.pairs.items()}


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """A parsed file."""

    arguments: Mapping[str, str]
    """ARGs before the first FROM, with their defaults."""
    stages: tuple[Stage, ...]

    @property
    def final(self) -> Stage:
        """The stage that becomes the image."""
        return self.stages[-1]


def parse(text: str) -> Dockerfile:
    """Read a Dockerfile. Raises ValueError for an instruction that this module does not know."""
    arguments: dict[str, str] = {}
    heads: list[tuple[str, str]] = []
    bodies: list[list[Instruction]] = []
    for instruction in _instructions(text):
        if instruction.keyword == "FROM":
            base, *rest = instruction.words
            heads.append((base, rest[1] if len(rest) == 2 and rest[0].upper() == "AS" else ""))
            bodies.append([])
        elif bodies:
            bodies[-1].append(instruction)
        elif instruction.keyword == "ARG":
            arguments.update(instruction.pairs)
        else:
            raise ValueError(f"line {instruction.line}: expected FROM first, found {instruction.keyword}")
    stages = (Stage(base, name, tuple(body)) for (base, name), body in zip(heads, bodies, strict=True))
    return Dockerfile(arguments, tuple(stages))


def _instructions(text: str) -> Iterator[Instruction]:
    begun, parts = 0, []
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not parts and not line.strip()):
            continue
        begun = begun if parts else number
        parts.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            yield _instruction(begun, "\n".join(parts))
            parts = []


def _instruction(line: int, text: str) -> Instruction:
    keyword, _, rest = text.strip().partition(" ")
    if keyword not in KEYWORDS:
        raise ValueError(f"line {line}: expected one of {', '.join(sorted(KEYWORDS))}, found {keyword}")
    flags: dict[str, str] = {}
    while match := re.match(r"--([a-z]+)=(\S+)\s+", rest):
        flags[match[1]] = match[2]
        rest = rest[match.end() :]
    # A shell joins continued lines itself; elsewhere a line break is white space.
    return Instruction(line, keyword, rest.strip() if keyword != "RUN" else rest.replace("\n", " ").strip(), flags)


@dataclass(frozen=True, slots=True)
class Image:
    """What a build without engine left behind."""

    root: Path
    """Stands in for `/`; only MAPPED folders exist in it."""
    environment: Mapping[str, str]
    """Of a container: ENV and a PATH that offers nothing but what the image brings."""
    entrypoint: tuple[str, ...]
    user_id: int
    left_out: tuple[str, ...]
    """RUN steps of any stage that need an engine."""

    def path(self, inside: str) -> Path:
        """Where a path of the image lies on this machine."""
        return self.root / inside.lstrip("/")


def build(
    dockerfile: Dockerfile,
    context: Path,
    folder: Path,
    arguments: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Image:
    """Carry out every stage below `folder`, which must be empty.

    `arguments` are --build-arg, `environment` overrides ENV of every stage. Raises CalledProcessError with the output
    of the step that failed.
    """
    (folder / "base").mkdir(parents=True)
    python = folder / "base" / "python"
    # A script and no link: a venv made by it remembers the real interpreter.
    python.write_text(f'#!/bin/sh\nexec "{_base_python()}" "$@"\n')
    python.chmod(0o755)
    run = _Build(dockerfile, context, folder, dict(arguments or {}), dict(environment or {}))
    for stage in dockerfile.stages[:-1]:
        run.stage(stage)
        run.put_aside(stage.name)
    return run.stage(dockerfile.final)


def _base_python() -> Path:
    return Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"


class _Build:
    """Carries out one stage after the other, each in the same folder `root`, so that paths stay valid when copied."""

    def __init__(
        self,
        dockerfile: Dockerfile,
        context: Path,
        folder: Path,
        arguments: dict[str, str],
        environment: dict[str, str],
    ) -> None:
        self._defaults = dockerfile.arguments
        self._context = context
        self._ignored = IgnoreFile.read(context / ".dockerignore")
        self._folder = folder
        self._root = folder / "root"
        self._given = arguments
        self._override = environment
        self._left_out: list[str] = []

    def put_aside(self, name: str) -> None:
        """End a stage that only later stages copy from."""
        (self._folder / "stages").mkdir(exist_ok=True)
        self._root.rename(self._folder / "stages" / name)

    def stage(self, stage: Stage) -> Image:
        """Carry out the instructions of one stage."""
        self._root.mkdir()
        path = str(self._folder / "base")
        values: dict[str, str] = {"PATH": path}
        environment = {"PATH": path}
        work = self._root
        for instruction in stage.instructions:
            match instruction.keyword:
                case "ARG":
                    for name, default in instruction.pairs.items():
                        values[name] = self._given.get(name, default or self._defaults.get(name, ""))
                case "ENV":
                    pairs = {name: self._here(expand(value, values)) for name, value in instruction.pairs.items()}
                    environment.update(pairs | {k: v for k, v in self._override.items() if k in pairs})
                    values.update(environment)
                case "WORKDIR":
                    work = self._root / expand(instruction.text, values).lstrip("/")
                    work.mkdir(parents=True, exist_ok=True)
                case "COPY":
                    self._copy(instruction, work)
                case "RUN":
                    self._run(instruction, work, {**values, **environment})
        entrypoints, users = stage.all_of("ENTRYPOINT"), stage.all_of("USER")
        return Image(
            self._root,
            environment,
            tuple(entrypoints[-1].words) if entrypoints else (),
            int(users[-1].text.partition(":")[0]) if users else 0,
            tuple(self._left_out),
        )

    def _here(self, text: str) -> str:
        return _IMAGE_PATH.sub(lambda match: f"{self._root}{match[0]}", text)

    def _copy(self, instruction: Instruction, work: Path) -> None:
        *sources, target = instruction.words
        place = self._root / target.lstrip("/") if target.startswith("/") else work / target
        stage = instruction.flags.get("from")
        for source in sources:
            if stage:
                copied = self._folder / "stages" / stage / source.lstrip("/")
                shutil.copytree(copied, place, symlinks=True, copy_function=os.link, dirs_exist_ok=True)
                continue
            for file in self._ignored.offered(self._context, source):
                inside = file.relative_to(self._context / source)
                copy = place / inside if (self._context / source).is_dir() else place / file.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)

    def _run(self, instruction: Instruction, work: Path, environment: Mapping[str, str]) -> None:
        if instruction.text.startswith("apt-get "):
            self._left_out.append(instruction.text)
            return
        outer = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        path = f"{environment['PATH']}:{os.environ.get('PATH', '/usr/bin:/bin')}"
        done = subprocess.run(
            ["/bin/sh", "-c", self._here(instruction.text)],
            cwd=work,
            env={**outer, **environment, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            umask=0o022,
        )
        if done.returncode != 0:
            raise subprocess.CalledProcessError(
                done.returncode, f"line {instruction.line}: {done.args[2]}", done.stdout
            )


def expand(text: str, values: Mapping[str, str]) -> str:
    """Put variables in, unknown ones as nothing, as engines do outside RUN."""
    return _VARIABLE.sub(lambda match: values.get(match[1] or match[2], ""), text)


@dataclass(frozen=True, slots=True)
class IgnoreFile:
    """A .dockerignore that begins with `*`: what it then lets in with `!`, less what later lines take out."""

    let_in: tuple[str, ...]
    taken_out: tuple[str, ...]

    @classmethod
    def read(cls, file: Path) -> IgnoreFile:
        """Read one. Raises ValueError when it does not begin by ignoring everything."""
        lines = [line.strip() for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
        if lines[:1] != ["*"]:
            raise ValueError(f"{file}: expected * first, found {lines[:1]}")
        let_in = tuple(line[1:].strip("/") for line in lines if line.startswith("!"))
        return cls(let_in, tuple(line for line in lines[1:] if not line.startswith("!")))

    def offers(self, path: PurePosixPath) -> bool:
        """Whether a path, relative to the context, is part of the context."""
        return any(path.is_relative_to(one) for one in self.let_in) and not self._takes_out(path)

    def offered(self, context: Path, source: str) -> Iterable[Path]:
        """Files below one source of a COPY. Raises FileNotFoundError when there are none, as an engine does."""
        start = context / source
        found = [start] if start.is_file() else sorted(path for path in start.rglob("*") if path.is_file())
        files = [path for path in found if self.offers(PurePosixPath(path.relative_to(context)))]
        if not files:
            raise FileNotFoundError(f"{source}: nothing of it is in the context")
        return files

    def _takes_out(self, path: PurePosixPath) -> bool:
        names = path.parts
        return any(
            fnmatch.fnmatch(name, pattern.removeprefix("**/"))
            for pattern in self.taken_out
            for name in (names if pattern.startswith("**/") else names[:1])
        )


def run_in(
    image: Image,
    command: Sequence[str],
    *,
    scratch: Path,
    environment: Mapping[str, str] | None = None,
    user_id: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command as a container of the image would, with `scratch` as its `/tmp`."""
    return subprocess.run(
        command,
        cwd="/",
        env=container_environment(image, scratch, environment),
        user=user_id,
        group=user_id,
        extra_groups=None if user_id is None else [],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def container_environment(image: Image, scratch: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of a process of the image."""
    return {**image.environment, "HOME": str(scratch), "TMPDIR": str(scratch), **(more or {})}
