"""The Dockerfiles: sound by a linter's rules, and in step with the code that starts their containers."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath

import pytest

from support.dockerfile import Dockerfile, IgnoreFile, parse
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.render.pod import MODEL_CACHE, USER_ID

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
IMAGES = {"operator": "operator/Dockerfile", "runtime": "runtime/Dockerfile"}
EXTRAS = {"operator": ["operator", "power"], "runtime": ["runtime"]}
"""The operator's image also starts the power agent, so that platform teams mirror one image for the control plane."""


@pytest.fixture(params=IMAGES)
def extra(request: pytest.FixtureRequest) -> str:
    """The extra of the distribution that an image holds; also the folder of its Dockerfile."""
    return str(request.param)


@pytest.fixture
def dockerfile(extra: str) -> Dockerfile:
    return parse((ROOT / IMAGES[extra]).read_text())


def test_hadolint_finds_nothing(extra: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")

    done = subprocess.run(
        [hadolint, "--no-color", ROOT / IMAGES[extra]], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_stage_starts_from_the_one_base_that_a_build_can_pin(dockerfile: Dockerfile) -> None:
    minor = PROJECT["project"]["requires-python"].removeprefix(">=")

    assert [stage.base for stage in dockerfile.stages] == ["${PYTHON_IMAGE}", "${PYTHON_IMAGE}"]
    assert dockerfile.arguments["PYTHON_IMAGE"].startswith(f"python:{minor}-slim")


def test_the_image_runs_as_the_account_that_pods_name(dockerfile: Dockerfile) -> None:
    assert dockerfile.final.last_of("USER").text == f"{USER_ID}:{USER_ID}"


@pytest.mark.parametrize(
    ("image", "command"),
    [
        pytest.param("operator", ["windlass", "operator", "run"], id="the chart gives settings, not a command"),
        pytest.param("runtime", ["windlass-runtime"], id="the pod's args begin with serve"),
    ],
)
def test_the_entry_point_is_what_manifests_count_on(image: str, command: list[str]) -> None:
    dockerfile = parse((ROOT / IMAGES[image]).read_text())

    assert dockerfile.final.last_of("ENTRYPOINT").words == command


def test_the_version_is_the_projects_and_the_default_runtime_images(dockerfile: Dockerfile) -> None:
    version = PROJECT["project"]["version"]

    assert dockerfile.final.merged("ARG")["VERSION"] == version
    assert FleetSettings().runtime_image.endswith(f"/windlass-runtime:{version}")


def test_the_final_stage_copies_the_environment_and_installs_nothing(dockerfile: Dockerfile) -> None:
    copies = dockerfile.final.all_of("COPY")
    steps = " ".join(step.text for step in dockerfile.final.all_of("RUN"))

    assert [(copy.flags, copy.words) for copy in copies] == [({"from": "build"}, ["/opt/windlass", "/opt/windlass"])]
    assert not {"apt-get", "pip", "uv", "gcc", "g++", "curl"} & set(steps.split())


def test_the_image_installs_its_own_extras_alone_with_pinned_versions(extra: str, dockerfile: Dockerfile) -> None:
    steps = [step.text.split() for step in dockerfile.stages[0].all_of("RUN")]
    extras = [value for words in steps for flag, value in itertools.pairwise(words) if flag == "--extra"]
    pinned = [words for words in steps if "--extra" in words and "requirements.lock" in words]

    assert extras == EXTRAS[extra]
    assert len(pinned) == 1


def test_both_images_are_made_with_the_same_installer() -> None:
    versions = {parse((ROOT / file).read_text()).stages[0].merged("ARG")["UV_VERSION"] for file in IMAGES.values()}

    assert len(versions) == 1


def test_the_runtime_image_brings_its_kernels_and_its_model_cache() -> None:
    final = parse((ROOT / IMAGES["runtime"]).read_text()).final

    assert final.merged("ENV")["HF_HOME"] == MODEL_CACHE
    assert final.merged("ENV")["WINDLASS_KERNEL_LIBRARY"].startswith("/opt/windlass/")
    # Without `compute` a GPU container has no libcuda; with VISIBLE_DEVICES an image would choose devices itself.
    assert "compute" in final.merged("ENV")["NVIDIA_DRIVER_CAPABILITIES"].split(",")
    assert "NVIDIA_VISIBLE_DEVICES" not in final.merged("ENV")


def test_a_build_sees_what_the_wheel_is_made_of_and_nothing_else() -> None:
    context = IgnoreFile.read(ROOT / ".dockerignore")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    files = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], "pyproject.toml", "requirements.lock"}

    offered = {path for path in tracked if context.offers(PurePosixPath(path))}

    assert offered == files | {path for path in tracked if path.startswith(tuple(f"{one}/" for one in packages))}
    assert not context.offers(PurePosixPath("operator/windlass_operator/__pycache__/main.cpython-311.pyc"))


@pytest.mark.parametrize("engine", ["docker", "podman", "buildah"])
def test_make_images_takes_the_engine_that_answers(tmp_path: Path, engine: str) -> None:
    add_engine(tmp_path, "docker", answers=engine == "docker")
    add_engine(tmp_path, "podman", answers=engine == "podman")
    add_engine(tmp_path, "buildah", answers=engine == "buildah")

    done = make_images(tmp_path)

    builds = [line.split() for line in done.stdout.splitlines() if line.startswith(f"{engine} ran build ")]
    assert done.returncode == 0, done.stderr
    assert [words[words.index("--file") + 1] for words in builds] == list(IMAGES.values())
    assert [words[words.index("--tag") + 1] for words in builds] == [
        "ghcr.io/windlass/windlass-operator:0.1.0",
        FleetSettings().runtime_image,
    ]


def test_make_images_without_an_engine_says_what_is_missing(tmp_path: Path) -> None:
    add_engine(tmp_path, "docker", answers=False)

    done = make_images(tmp_path)

    assert done.returncode != 0
    assert "no docker, podman or buildah answers" in done.stderr
    assert "ran build" not in done.stdout


def add_engine(folder: Path, name: str, *, answers: bool) -> None:
    """A stand-in that says what it was asked; `info` fails where a daemon does not answer."""
    script = folder / name
    script.write_text(f'#!/bin/sh\n[ "$1" = info ] && exit {0 if answers else 1}\necho "{name} ran $*"\n')
    script.chmod(0o755)


def make_images(engines: Path) -> subprocess.CompletedProcess[str]:
    """Run the target with no engine but those of the folder."""
    for name in ("make", "sh", "sed", "git"):
        for place in os.environ["PATH"].split(os.pathsep):
            if (Path(place) / name).exists():
                (engines / name).symlink_to(Path(place) / name)
                break
    environment = {"PATH": str(engines), "HOME": str(engines)}
    return subprocess.run(
        ["make", "--no-print-directory", "-C", ROOT, "images"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
