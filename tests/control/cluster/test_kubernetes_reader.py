"""Reading a cluster once: everything where the rights reach, the gaps named where they do not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from windlass_operator import errors
from windlass_operator.cluster.kubernetes_client import Forbidden, NotFound
from windlass_operator.cluster.kubernetes_kinds import KINDS
from windlass_operator.cluster.kubernetes_reader import Gap, read_picture
from windlass_operator.domain.snapshot import Key

SERVICE = {"metadata": {"name": "chat", "namespace": "team-a", "uid": "u"}, "spec": {"model": {"uri": "file:///m"}}}
NODE = {"metadata": {"name": "n"}, "status": {"allocatable": {"nvidia.com/gpu": "4"}}}
OPERATOR = {
    "metadata": {"name": "windlass-operator", "namespace": "windlass-system"},
    "spec": {"template": {"spec": {"containers": [{"env": [{"name": "WINDLASS_FLEET_DEFAULT_CPU", "value": "2"}]}]}}},
}


class OneServer:
    """Answers lists from a table of paths; what is not in it is empty."""

    access = SimpleNamespace(server="https://server")

    def __init__(self, lists: dict[str, Any]) -> None:
        self._lists = lists
        self.asked: list[str] = []

    async def list_items(self, path: str, selector: str):
        self.asked.append(path)
        found = self._lists.get(path, [])
        if isinstance(found, Exception):
            raise found
        for item in found:
            yield item

    async def request(self, method: str, path: str, *rest: Any, **more: Any) -> dict[str, Any]:
        return {"status": {"allowed": False}}


def path_of(kind: str, namespace: str = "") -> str:
    return KINDS[kind].path(namespace)


async def read(lists: dict[str, Any]):
    return await read_picture(OneServer(lists), {"team-a"}, "windlass-system")


async def test_what_lists_leave_out_of_their_items_is_put_back():
    picture = await read({path_of("InferenceService"): [SERVICE], path_of("Node"): [NODE]})

    assert Key("InferenceService", "team-a", "chat") in picture.snapshot.services
    assert picture.live("InferenceService", "team-a", "chat")["kind"] == "InferenceService"
    assert picture.snapshot.nodes["n"].allocatable == {"nvidia.com/gpu": 4}
    assert picture.gaps == ()


async def test_what_may_not_be_read_everywhere_is_read_in_the_namespaces_in_question():
    picture = await read(
        {path_of("InferenceService"): Forbidden("no"), path_of("InferenceService", "team-a"): [SERVICE]}
    )

    assert Key("InferenceService", "team-a", "chat") in picture.snapshot.services
    assert picture.gaps == (Gap("InferenceService", ("team-a",)),)
    assert picture.reads("InferenceService", "team-a")
    assert not picture.reads("InferenceService", "team-b")


@pytest.mark.parametrize("kind", ["Node", "Pod", "Deployment"])
async def test_without_the_whole_picture_of_devices_none_is_known_to_be_free(kind):
    picture = await read({path_of(kind): Forbidden("no"), path_of(kind, "team-a"): Forbidden("no")})

    assert picture.snapshot.nodes is None
    assert [gap.kind for gap in picture.gaps] == [kind]


async def test_a_cluster_without_our_kinds_is_told_apart_from_an_empty_one():
    with pytest.raises(errors.ClusterUnavailable, match=r"expected the CRD tenants.windlass.dev, found none"):
        await read({path_of("Tenant"): NotFound("no")})


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param([OPERATOR], {"WINDLASS_FLEET_DEFAULT_CPU": "2"}, id="it runs there"),
        pytest.param([], None, id="it runs elsewhere"),
        pytest.param(Forbidden("no"), None, id="it may not be looked at"),
    ],
)
async def test_the_settings_of_the_operator_are_read_where_it_runs(found, expected):
    picture = await read({path_of("Deployment", "windlass-system"): found})

    assert picture.environment == expected


async def test_an_unreadable_object_that_was_not_read_is_not_taken_for_one_that_does_not_exist():
    picture = await read({path_of("ConfigMap"): Forbidden("no"), path_of("ConfigMap", "team-a"): Forbidden("no")})

    assert not picture.reads("ConfigMap", "team-a")
    assert picture.live("ConfigMap", "team-a", "chat-launch") is None
