"""The index: whose an object is, and which of two versions is believed."""

from typing import Any

from glinthawk_operator.index import ObjectIndex, ResourceKey, resource_key
from glinthawk_operator.manifests.names import object_labels


def resource(name: str = "demo", version: int = 1) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
        }
    }


def owned(
    name: str, owner: str = "demo", *, uid: str = "1", version: int = 1, node: str = ""
) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": object_labels(owner, "attention"),
        },
        "spec": {"nodeName": node},
    }


def test_objects_are_found_by_their_resource() -> None:
    index = ObjectIndex()
    key = index.put_resource(resource())
    assert index.put("Pod", owned("b")) == key
    assert index.put("Pod", owned("a")) == key
    index.put("Pod", owned("c", "other"))
    found = index.read(key)
    assert [body["metadata"]["name"] for body in found.of_kind("Pod")] == ["a", "b"]
    assert found.get("Pod", "c") is None
    assert found.resource is not None


def test_an_object_without_our_labels_is_nobodys() -> None:
    index = ObjectIndex()
    stray = owned("x")
    stray["metadata"]["labels"] = {}
    assert index.put("Pod", stray) is None


def test_an_older_version_changes_nothing() -> None:
    index = ObjectIndex()
    key = index.put_resource(resource(version=5))
    index.put_resource(resource(version=4))
    index.put("Pod", owned("a", version=10))
    index.put("Pod", owned("a", version=9))
    found = index.read(key)
    pod = found.get("Pod", "a")
    assert found.resource is not None
    assert pod is not None
    assert found.resource["metadata"]["resourceVersion"] == "5"
    assert pod["metadata"]["resourceVersion"] == "10"


def test_an_object_made_anew_replaces_the_old_one_and_outlives_its_end() -> None:
    index = ObjectIndex()
    key = index.put_resource(resource())
    index.put("Pod", owned("a", uid="1", version=10))
    index.put("Pod", owned("a", uid="2", version=11))
    index.remove("Pod", owned("a", uid="1", version=12))
    pod = index.read(key).get("Pod", "a")
    assert pod is not None
    assert pod["metadata"]["uid"] == "2"
    index.remove("Pod", owned("a", uid="2", version=13))
    assert index.read(key).get("Pod", "a") is None


def test_knows_whose_pods_are_on_a_node() -> None:
    index = ObjectIndex()
    key = index.put_resource(resource())
    index.put("Pod", owned("a", node="cpu-1"))
    index.put("Pod", owned("b", "other", node="cpu-2"))
    assert index.keys_on_node("cpu-1") == {key}
    assert index.keys_on_node("cpu-3") == set()


def test_a_resource_that_is_gone_leaves_its_objects_to_be_read() -> None:
    index = ObjectIndex()
    key = index.put_resource(resource())
    index.put("Pod", owned("a"))
    index.remove_resource(resource())
    found = index.read(key)
    assert found.resource is None
    assert found.get("Pod", "a") is not None
    assert index.keys() == set()


def test_keys_of_long_names_fit_a_label_and_differ() -> None:
    keys = {resource_key(resource("x" * 252 + letter)) for letter in "abc"}
    assert len(keys) == 3
    assert all(len(key.instance) <= 63 for key in keys)
    assert resource_key(resource()) == ResourceKey("ns", "demo")


def test_a_resource_made_anew_outlives_the_end_of_the_old_one() -> None:
    """Events of two objects of one name may come in any order."""
    index = ObjectIndex()
    old = resource()
    new = resource(version=9)
    new["metadata"]["uid"] = "another"
    index.put_resource(old)
    key = index.put_resource(new)
    index.remove_resource(old)
    assert index.read(key).resource is new


def test_a_node_made_anew_outlives_the_end_of_the_old_one() -> None:
    index = ObjectIndex()
    old, new = ({"metadata": {"name": "n", "uid": uid}} for uid in ("old", "new"))
    index.put_node(old)
    index.put_node(new)
    index.remove_node(old)
    assert index.node("n") is new
    index.remove_node(new)
    assert index.node("n") is None


def test_what_a_list_does_not_show_is_forgotten_unless_it_is_newer() -> None:
    index = ObjectIndex()
    key = index.put_resource(resource())
    for name, version in (("listed", 1), ("gone", 5), ("new", 11)):
        index.put("Pod", owned(name, uid=name, version=version))
    index.put("Service", owned("gone", uid="s", version=5))
    assert index.sweep("Pod", {"listed"}, 10) == {key}
    assert set(index.read(key).objects) == {("Pod", "listed"), ("Pod", "new"), ("Service", "gone")}
    assert index.sweep("Pod", {"listed"}, 10) == set()


def test_a_list_of_one_namespace_says_nothing_of_another() -> None:
    index = ObjectIndex()
    index.put("Pod", owned("a"))
    assert index.sweep("Pod", set(), 10, "another") == set()
    assert index.sweep("Pod", set(), 10, "ns") == {ResourceKey("ns", "demo")}


def test_resources_and_nodes_that_a_list_does_not_show_are_forgotten_too() -> None:
    index = ObjectIndex()
    key = index.put_resource(resource())
    index.put_node({"metadata": {"name": "cpu-1", "uid": "n", "resourceVersion": "3"}})
    assert index.sweep("GlinthawkDeployment", {"uid-demo"}, 10) == set()
    assert index.sweep("GlinthawkDeployment", set(), 10) == {key}
    assert index.keys() == set()
    index.sweep("Node", {"n"}, 10)
    assert index.node("cpu-1") is not None
    index.sweep("Node", set(), 10)
    assert index.node("cpu-1") is None
