"""The images, built without an engine: every RUN step of the Dockerfiles as a script, in a scratch folder.

Then both are used the way a cluster uses them: the operator's renders a pod, and the runtime's serves what that pod
says, as another account that may write nothing. Needs a package registry; quick when uv's cache is warm.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.dockerfile import Image, build, container_environment, parse, run_in
from windlass_contract.launch_spec import FILE_NAME, MOUNT_PATH

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "models" / "windlass-tiny"
NOBODY = 65532
ASSIGNED = 1_000_660_000
"""An account as clusters with a range of user ids per namespace assign it."""
SERVICE = """
apiVersion: windlass.dev/v1alpha1
kind: InferenceService
metadata: {name: storyteller, namespace: team-acme}
spec:
  model: {uri: "file:///models/windlass-tiny"}
  limits: {maxRunningRequests: 4}
"""


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A folder that other accounts may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="windlass-images-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def operator_image(scratch: Path) -> Image:
    return build_image("operator", scratch)


@pytest.fixture(scope="module")
def runtime_image(scratch: Path) -> Image:
    if shutil.which("g++") is None:
        pytest.skip("g++ is missing, which the left-out apt-get step would install")
    # Compiling torch's two thousand modules to bytecode takes a minute and shows nothing here.
    return build_image("runtime", scratch, {"UV_COMPILE_BYTECODE": "0"})


@pytest.fixture
def tmp(scratch: Path) -> Path:
    """What a pod mounts at /tmp."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    folder.chmod(0o777)
    return folder


def build_image(name: str, scratch: Path, environment: dict[str, str] | None = None) -> Image:
    dockerfile = parse((ROOT / name / "Dockerfile").read_text())
    try:
        return build(dockerfile, ROOT, scratch / name, environment=environment)
    except subprocess.CalledProcessError as exc:
        raise AssertionError(f"{name}/Dockerfile: {exc.cmd}\n{exc.output}") from exc


def installed(image: Image) -> dict[str, str]:
    """Distributions of an image and their versions."""
    (folder,) = image.path("/opt/windlass/lib").glob("python3*/site-packages")
    found = importlib.metadata.distributions(path=[str(folder)])
    return {item.metadata["Name"].lower().replace("_", "-"): item.version for item in found}


def locked() -> dict[str, str]:
    """Versions that requirements.lock pins."""
    pins = re.findall(r"^([a-z0-9.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    return dict(pins)


def lesser_account(image: Image) -> int | None:
    """An account that owns nothing of the image; None where this process cannot become one."""
    if os.geteuid() != 0:
        return None
    try:
        done = run_in(image, ["python", "-c", ""], scratch=Path("/"), user_id=NOBODY)
    except PermissionError:
        return None  # the interpreter lies in a home folder
    return NOBODY if done.returncode == 0 else None


def files_of(image: Image) -> dict[str, int]:
    """Every file of the image and its last change."""
    return {str(path): path.lstat().st_mtime_ns for path in image.root.rglob("*") if not path.is_dir()}


def test_the_operator_image_holds_the_locked_versions_of_its_extra_and_no_torch(operator_image: Image) -> None:
    found = installed(operator_image)

    assert {name: version for name, version in found.items() if name != "windlass"}.items() <= locked().items()
    assert {"windlass", "kopf", "kubernetes"} <= set(found)
    assert not {"torch", "numpy", "tokenizers", "huggingface-hub", "pytest", "uv", "pip"} & set(found)


def test_the_operator_image_works_as_an_account_that_may_write_nothing(
    operator_image: Image, tmp: Path, scratch: Path
) -> None:
    shutil.copytree(ROOT / "examples" / "quickstart", scratch / "quickstart")
    user, before = lesser_account(operator_image), files_of(operator_image)

    runs = [
        run_in(operator_image, command, scratch=tmp, user_id=user)
        for command in (
            ["windlass", "--help"],
            ["windlass", "validate", str(scratch / "quickstart")],
            [*operator_image.entrypoint, "--help"],
            ["python", "-c", "import getpass, windlass_operator.reconcile.process; print(getpass.getuser())"],
            ["python", "-c", "import windlass_operator.serve.process"],
        )
    ]

    assert [done.returncode for done in runs] == [0] * 5, [done.stderr for done in runs]
    assert "valid: read 1 InferenceService, 1 Tenant; no errors" in runs[1].stdout
    assert runs[3].stdout == "windlass\n"  # kopf asks for the name of an account that no file lists
    assert files_of(operator_image) == before


def test_both_images_work_as_an_account_that_a_cluster_assigns(
    operator_image: Image, runtime_image: Image, tmp: Path
) -> None:
    user = ASSIGNED if lesser_account(operator_image) else None
    keep = "import os, pathlib; file = pathlib.Path(os.environ['HF_HOME'], 'model'); file.touch(); file.unlink()"

    runs = [
        run_in(operator_image, ["windlass", "--version"], scratch=tmp, user_id=user),
        run_in(runtime_image, [*runtime_image.entrypoint, "--version"], scratch=tmp, user_id=user),
        run_in(runtime_image, ["python", "-c", keep], scratch=tmp, user_id=user),
    ]

    assert [done.returncode for done in runs] == [0, 0, 0], [done.stderr for done in runs]


def test_the_operator_image_without_a_cluster_stops_with_the_reason(operator_image: Image, tmp: Path) -> None:
    done = run_in(operator_image, operator_image.entrypoint, scratch=tmp, user_id=lesser_account(operator_image))

    assert done.returncode == 1
    assert "name one with --kubeconfig or KUBECONFIG, or run inside a cluster" in done.stderr


def test_the_runtime_image_holds_the_locked_versions_of_its_extra_and_no_kopf(runtime_image: Image) -> None:
    found = installed(runtime_image)

    assert {name: version for name, version in found.items() if name != "windlass"}.items() <= locked().items()
    assert {"windlass", "torch", "tokenizers"} <= set(found)
    assert not {"kopf", "kubernetes", "transformers", "pytest", "uv", "pip"} & set(found)


def test_the_runtime_image_serves_the_pod_that_the_operator_image_renders(
    operator_image: Image, runtime_image: Image, tmp: Path, scratch: Path
) -> None:
    pod, launch = render_pod(operator_image, tmp, scratch)
    container = pod["containers"][0]
    mounted = mount(launch, tmp)
    arguments = [word.replace(MOUNT_PATH, str(mounted)) for word in container["args"]]
    environment = {item["name"]: item["value"] for item in container["env"]}
    user, before = lesser_account(runtime_image), files_of(runtime_image)

    with serving(runtime_image, arguments, tmp, environment, user) as (process, url):
        answer = ask(url)
        hook = container["lifecycle"]["preStop"]["exec"]["command"]
        drained = run_in(
            runtime_image, [word.replace("http://127.0.0.1:8000", url) for word in hook], scratch=tmp, user_id=user
        )
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)

    assert answer["choices"][0]["message"]["content"]
    assert (drained.returncode, drained.stderr) == (0, "")
    assert code == 0
    assert files_of(runtime_image) == before


def test_the_runtime_image_computes_with_the_kernels_it_was_built_with(runtime_image: Image, tmp: Path) -> None:
    code = "from windlass_kernels import native; print(native.load().reason)"

    # PATH offers the image's commands alone, so nothing could be compiled here.
    done = run_in(runtime_image, ["python", "-c", code], scratch=tmp, user_id=lesser_account(runtime_image))

    assert done.stdout.startswith("native kernels, "), done.stderr
    assert runtime_image.environment["WINDLASS_KERNEL_LIBRARY"].startswith(str(runtime_image.root))
    assert not list(tmp.rglob("*.so"))


def test_a_torch_index_replaces_the_cuda_wheel_and_everything_it_needs(scratch: Path) -> None:
    index = scratch / "index"
    version = f"{locked()['torch']}+cpu"
    make_wheel(index / "torch", "torch", version)
    dockerfile = parse((ROOT / "runtime" / "Dockerfile").read_text())
    stage = dockerfile.stages[0]
    steps = tuple(item for item in stage.instructions if item.line <= stage.all_of("RUN")[2].line)

    image = build(
        type(dockerfile)(dockerfile.arguments, (type(stage)(stage.base, stage.name, steps),)),
        ROOT,
        scratch / "cpu",
        {"TORCH_INDEX_URL": index.as_uri()},
        {"UV_COMPILE_BYTECODE": "0"},
    )

    found = installed(image)
    assert found["torch"] == version
    assert "tokenizers" in found
    assert not [name for name in found if name.startswith(("nvidia-", "cuda-", "triton"))]


def render_pod(image: Image, tmp: Path, scratch: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pod spec and launch spec of SERVICE, from the operator's image."""
    (scratch / "service.yaml").write_text(SERVICE)
    command = ["windlass", "render", str(scratch / "service.yaml"), "-o", "json"]
    done = run_in(image, command, scratch=tmp, user_id=lesser_account(image))
    assert done.returncode == 0, done.stderr
    items = json.loads(done.stdout)["items"]
    of_kind = {item["kind"]: item for item in items}
    return of_kind["Deployment"]["spec"]["template"]["spec"], json.loads(of_kind["ConfigMap"]["data"][FILE_NAME])


def mount(launch: dict[str, Any], tmp: Path) -> Path:
    """Write the launch spec where the replica looks, with a port and a model folder of this machine."""
    model = tmp / "model"
    shutil.copytree(MODEL, model)
    folder = tmp / "launch"
    folder.mkdir()
    (folder / FILE_NAME).write_text(
        json.dumps({**launch, "port": 0, "host": "127.0.0.1", "model_uri": f"file://{model}"})
    )
    return folder


@contextlib.contextmanager
def serving(
    image: Image, arguments: list[str], tmp: Path, environment: dict[str, str], user: int | None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The image's entry point with the pod's arguments, ready to answer."""
    with (tmp / "log").open("w") as log:
        process = subprocess.Popen(
            [*image.entrypoint, *arguments],
            cwd="/",
            env={**environment, **container_environment(image, tmp)},
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    try:
        url = ""
        for line in process.stdout:
            event = json.loads(line)
            url = event.get("url", url)
            if event["event"] == "ready":
                break
        else:
            raise AssertionError(f"the replica is not ready; its log:\n{(tmp / 'log').read_text()[-4000:]}")
        yield process, url
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def ask(url: str) -> dict[str, Any]:
    """One chat completion."""
    body = {"model": "storyteller", "max_tokens": 8, "messages": [{"role": "user", "content": "Tell me about pods."}]}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.loads(response.read())
    return answer


def make_wheel(folder: Path, name: str, version: str) -> None:
    """An empty distribution, and the page that an index shows for it."""
    folder.mkdir(parents=True)
    info = f"{name}-{version}.dist-info"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"{info}/RECORD,,\n")
    (folder / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>\n')
