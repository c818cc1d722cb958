"""Model URIs: what a replica opens, and where a source cannot work."""

from __future__ import annotations

import pytest

from windlass_operator.domain.capabilities import Capabilities
from windlass_operator.domain.decision import Refusal
from windlass_operator.domain.fleet import Platform
from windlass_operator.domain.model_source import (
    ModelSource,
    SourceKind,
    check_volume,
    explain_source,
    parse_source,
)

WITHOUT_IMAGES = Capabilities(known=True, drops_image_volumes="v1.34.4")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        pytest.param("hf://org/name@v1", ModelSource(SourceKind.HUB, "org/name@v1", "", "hf://org/name@v1"), id="hub"),
        pytest.param("pvc://models", ModelSource(SourceKind.CLAIM, "models", "", "file:///models"), id="claim root"),
        pytest.param(
            "pvc://models/a/b/",
            ModelSource(SourceKind.CLAIM, "models", "a/b", "file:///models"),
            id="folder of a claim",
        ),
        pytest.param(
            "oci://r.io/chat:1", ModelSource(SourceKind.IMAGE, "r.io/chat:1", "", "file:///models"), id="image"
        ),
        pytest.param(
            "file:///srv/chat",
            ModelSource(SourceKind.FILE, "/srv/chat", "", "file:///srv/chat"),
            id="path in the image",
        ),
    ],
)
def test_mounted_sources_reach_a_replica_as_files(uri, expected):
    assert parse_source(uri, Platform.KUBERNETES) == expected


@pytest.mark.parametrize(
    ("uri", "platform", "words"),
    [
        pytest.param("file://./chat", Platform.KUBERNETES, "absolute path", id="a pod has no working folder"),
        pytest.param("pvc://models/../secrets", Platform.KUBERNETES, "without ..", id="leaving the claim"),
        pytest.param("hf://name", Platform.KUBERNETES, "organisation/name", id="hub name without organisation"),
        pytest.param("s3://bucket/x", Platform.KUBERNETES, "one of hf://", id="unknown scheme"),
        pytest.param("pvc://models", Platform.LOCAL, "machine without a cluster", id="a laptop has no claims"),
        pytest.param("oci://r.io/chat:1", Platform.LOCAL, "machine without a cluster", id="a laptop mounts no images"),
    ],
)
def test_a_source_that_cannot_work_is_refused_with_what_was_expected_and_found(uri, platform, words):
    refusal = parse_source(uri, platform)

    assert isinstance(refusal, Refusal)
    assert refusal.reason == "ModelSourceUnusable"
    assert words in refusal.message
    assert uri in refusal.message


def test_relative_paths_work_on_one_machine():
    assert parse_source("file://./chat", Platform.LOCAL) == ModelSource(SourceKind.FILE, "./chat", "", "file://./chat")


def test_an_unpinned_hub_model_is_pointed_out():
    unpinned, pinned = (parse_source(uri, Platform.KUBERNETES) for uri in ("hf://org/name", "hf://org/name@v1"))

    assert isinstance(unpinned, ModelSource)
    assert isinstance(pinned, ModelSource)
    assert "pin one" in explain_source(unpinned).reason
    assert "pin one" not in explain_source(pinned).reason


def test_an_image_is_refused_where_the_server_would_drop_its_volume():
    refusal = check_volume(ModelSource(SourceKind.IMAGE, "r.io/chat:1"), WITHOUT_IMAGES)

    assert refusal is not None
    assert refusal.reason == "ModelSourceUnusable"
    assert "found Kubernetes v1.34.4 with the feature gate ImageVolume off" in refusal.message
    assert "1.35" in refusal.next_step


@pytest.mark.parametrize(
    ("kind", "capabilities"),
    [
        pytest.param(SourceKind.IMAGE, Capabilities(known=True), id="the server keeps image volumes"),
        pytest.param(SourceKind.IMAGE, Capabilities(), id="nobody has looked: rendering files"),
        *(pytest.param(kind, WITHOUT_IMAGES, id=f"{kind} needs none") for kind in SourceKind if kind != "oci"),
    ],
)
def test_any_other_source_and_server_go_together(kind, capabilities):
    assert check_volume(ModelSource(kind, "x"), capabilities) is None
