"""The Kubernetes manifests against the schema KubeRay publishes, and against cluster.yaml.

kuberay_schema.json is that schema cut down to the fields used here: any other field, and any other type, is an error. It was
written by this file; with the published definitions (github.com/ray-project/kuberay, ray-operator/config/crd/bases) at hand

    KUBERAY_CRDS=DIRECTORY python tests/test_kuberay.py         writes it anew, after a change of the manifests
    KUBERAY_CRDS=DIRECTORY pytest tests/test_kuberay.py         checks the manifests against the whole schema as well
"""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

ROOT = Path(__file__).resolve().parent.parent
CUT = Path(__file__).with_name("kuberay_schema.json")
KEPT = ("type", "enum", "required", "format", "anyOf", "x-kubernetes-int-or-string")


def manifests() -> list[dict]:
    return [d for f in sorted((ROOT / "jobs/kuberay").glob("*.yaml")) for d in yaml.safe_load_all(f.read_text())]


def of_kind(kind: str) -> list[dict]:
    return [document for document in manifests() if document["kind"] == kind]


def published(kind: str) -> dict:
    """The definition's OpenAPI schema; KubeRay's version with it. Kubernetes itself knows `metadata`."""
    text = (Path(os.environ["KUBERAY_CRDS"]) / f"ray.io_{kind.lower()}s.yaml").read_text()
    versions = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
    return next(version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")


def cut(schema: dict, values: list) -> dict:
    """The schema of these values alone: what they use of it, and nothing else allowed."""
    kept = {key: schema[key] for key in KEPT if key in schema}
    if "items" in schema:
        kept["items"] = cut(schema["items"], [item for value in values for item in value])
    elif "properties" in schema:
        used = {key for value in values for key in value}
        unknown = used - set(schema["properties"])
        assert not unknown, f"not in the published schema: {unknown}"
        kept["properties"] = {
            key: cut(schema["properties"][key], [value[key] for value in values if key in value]) for key in sorted(used)
        }
        kept["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = cut(schema["additionalProperties"], [v for value in values for v in value.values()])
    return kept


def cut_published(kind: str) -> dict:
    schema = published(kind)
    schema["properties"]["metadata"] = {"type": "object"}
    return cut(schema, of_kind(kind))


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_manifests_fit_the_schema(kind):
    schema = json.loads(CUT.read_text())[kind]
    documents = of_kind(kind)
    assert documents
    for document in documents:
        errors = [f"{list(error.absolute_path)}: {error.message}" for error in Draft7Validator(schema).iter_errors(document)]
        assert not errors


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS names no directory with KubeRay's definitions")
def test_the_cut_is_that_of_the_published_schema(kind):
    assert json.loads(CUT.read_text())[kind] == cut_published(kind)
    for document in of_kind(kind):
        Draft7Validator(published(kind)).validate(document)


def test_a_wrong_field_or_type_is_found():
    schema, document = json.loads(CUT.read_text())["RayCluster"], of_kind("RayCluster")[0]
    document["spec"]["workerGroupSpecs"][0]["maxReplica"] = 4
    document["spec"]["authOptions"]["mode"] = "tokens"
    document["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    found = "\n".join(error.message for error in Draft7Validator(schema).iter_errors(document))
    assert "'maxReplica' was unexpected" in found and "'tokens' is not one of" in found and "0 is not of type 'string'" in found


def test_it_is_the_cluster_of_the_cluster_launcher():
    """The same shape: GPUs, bounds, versions, token authentication, MLflow on loopback, nothing reachable from outside."""
    spec = of_kind("RayCluster")[0]["spec"]
    launcher = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]["gpu"]
    (gpu,) = spec["workerGroupSpecs"]
    (worker,) = gpu["template"]["spec"]["containers"]
    assert (gpu["minReplicas"], gpu["maxReplicas"]) == (launcher["min_workers"], launcher["max_workers"])
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == str(launcher["resources"]["GPU"])
    assert spec["enableInTreeAutoscaling"] and spec["authOptions"] == {"mode": "token"}
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert spec["rayVersion"] == pinned
    assert f"FROM rayproject/ray:{pinned}-py311-gpu" in (ROOT / "jobs/kuberay/Dockerfile").read_text()
    head, mlflow = spec["headGroupSpec"]["template"]["spec"]["containers"]
    assert "--host 127.0.0.1" in mlflow["args"][0]
    assert {"name": "MLFLOW_TRACKING_URI", "value": "http://127.0.0.1:5000"} in head["env"]
    (claim,) = of_kind("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in (spec["headGroupSpec"], gpu):
        volumes = {volume["name"]: volume for volume in pod["template"]["spec"]["volumes"]}
        assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert {document["kind"] for document in manifests()} == {"RayCluster", "RayJob", "PersistentVolumeClaim"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    (job,) = of_kind("RayJob")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": of_kind("RayCluster")[0]["metadata"]["name"]}


if __name__ == "__main__":
    CUT.write_text(json.dumps({kind: cut_published(kind) for kind in ("RayCluster", "RayJob")}, indent=1) + "\n")
