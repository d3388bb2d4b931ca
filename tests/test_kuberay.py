"""The RayJob for Kubernetes: fields that KubeRay and Kubernetes know, and an entry point that runs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from glr_dist import config
from glr_dist.cli.parser import parse

ROOT = Path(__file__).parents[1]
MANIFEST = yaml.safe_load((ROOT / "jobs" / "kuberay" / "rayjob.yaml").read_text())
IMAGE_ROOT = "/opt/glr_dist/"  # where the image holds this repository

# All fields of each type; behind a colon the type of those that are walked into, the others hold values or free keys.
# Ray's types as in KubeRay v1.7, https://docs.ray.io/en/master/cluster/kubernetes/references/api.html;
# those of Kubernetes v1.28, https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.28/.
TABLE = """
RayJob = apiVersion kind metadata:ObjectMeta spec:RayJobSpec
RayJobSpec = activeDeadlineSeconds backoffLimit metadata clusterSelector submitterConfig managedBy deletionStrategy
    entrypoint runtimeEnvYAML jobId submissionMode entrypointResources entrypointNumCpus entrypointNumGpus
    ttlSecondsAfterFinished preRunningDeadlineSeconds shutdownAfterJobFinishes suspend rayClusterSpec:RayClusterSpec
    submitterPodTemplate:PodTemplateSpec
RayClusterSpec = upgradeStrategy suspend managedBy autoscalerOptions headServiceAnnotations enableInTreeAutoscaling
    gcsFaultToleranceOptions historyServerOptions networkPolicy tlsOptions rayVersion authOptions:AuthOptions
    headGroupSpec:HeadGroupSpec workerGroupSpecs:WorkerGroupSpec
AuthOptions = enableK8sTokenAuth secretName mode
HeadGroupSpec = headService enableIngress ingressOptions resources labels rayStartParams serviceType
    template:PodTemplateSpec
WorkerGroupSpec = suspend groupName replicas minReplicas maxReplicas idleTimeoutSeconds priority resources labels
    rayStartParams scaleStrategy numOfHosts template:PodTemplateSpec
ObjectMeta = annotations creationTimestamp deletionGracePeriodSeconds deletionTimestamp finalizers generateName
    generation labels managedFields name namespace ownerReferences resourceVersion selfLink uid
PodTemplateSpec = metadata:ObjectMeta spec:PodSpec
PodSpec = activeDeadlineSeconds affinity automountServiceAccountToken dnsConfig dnsPolicy enableServiceLinks
    ephemeralContainers hostAliases hostIPC hostNetwork hostPID hostUsers hostname imagePullSecrets nodeName
    nodeSelector os overhead preemptionPolicy priority priorityClassName readinessGates resourceClaims restartPolicy
    runtimeClassName schedulerName schedulingGates serviceAccount serviceAccountName setHostnameAsFQDN
    shareProcessNamespace subdomain terminationGracePeriodSeconds tolerations topologySpreadConstraints
    containers:Container initContainers:Container securityContext:PodSecurityContext volumes:Volume
PodSecurityContext = fsGroup fsGroupChangePolicy runAsGroup runAsNonRoot runAsUser seLinuxOptions supplementalGroups
    sysctls windowsOptions seccompProfile:SeccompProfile
SeccompProfile = localhostProfile type
Container = args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports readinessProbe
    resizePolicy restartPolicy startupProbe stdin stdinOnce terminationMessagePath terminationMessagePolicy tty
    volumeDevices workingDir resources:ResourceRequirements securityContext:SecurityContext volumeMounts:VolumeMount
ResourceRequirements = claims limits requests
SecurityContext = allowPrivilegeEscalation privileged procMount readOnlyRootFilesystem runAsGroup runAsNonRoot
    runAsUser seLinuxOptions windowsOptions capabilities:Capabilities seccompProfile:SeccompProfile
Capabilities = add drop
VolumeMount = mountPath mountPropagation name readOnly subPath subPathExpr
Volume = name configMap csi emptyDir ephemeral hostPath nfs projected secret
    persistentVolumeClaim:PersistentVolumeClaimVolumeSource
PersistentVolumeClaimVolumeSource = claimName readOnly
"""


def _types(table: str) -> dict[str, dict[str, str]]:
    """`{type: {field: its type, or ""}}`; a type's lines after the first are indented."""
    types = {}
    for line in table.replace("\n    ", " ").strip().splitlines():
        name, _, fields = line.partition(" = ")
        types[name] = {field: kind for field, _, kind in (word.partition(":") for word in fields.split())}
    return types


TYPES = _types(TABLE)


def _unknown(value: object, kind: str, where: str) -> Iterator[str]:
    """The paths of all fields that a type does not have."""
    for item in value if isinstance(value, list) else [value]:
        assert isinstance(item, dict), f"{where} must be a mapping"
        for key, inner in item.items():
            if key not in TYPES[kind]:
                yield f"{where}.{key}"
            elif inner_kind := TYPES[kind][key]:
                yield from _unknown(inner, inner_kind, f"{where}.{key}")


def test_kuberay_and_kubernetes_know_every_field():
    assert (MANIFEST["apiVersion"], MANIFEST["kind"]) == ("ray.io/v1", "RayJob")
    assert list(_unknown(MANIFEST, "RayJob", "")) == []


def test_an_unknown_field_is_found_at_any_depth():
    cluster = {"rayClusterSpec": {"workerGroupSpecs": [{"template": {"spec": {"volume": []}}}]}, "entryPoint": ""}
    found = list(_unknown({"spec": cluster}, "RayJob", ""))
    assert found == [".spec.rayClusterSpec.workerGroupSpecs.template.spec.volume", ".spec.entryPoint"]


def test_the_entry_point_runs_what_this_repository_holds():
    command, script, *arguments = shlex.split(MANIFEST["spec"]["entrypoint"])
    assert command == "python"
    assert (ROOT / script.removeprefix(IMAGE_ROOT)).is_file()
    options = parse(["train", *arguments])
    assert options.resume
    settings = config.load_config(ROOT / str(options.config).removeprefix(IMAGE_ROOT), options.overrides)
    assert settings.execution.kind == "layers"
    mounts = {mount["mountPath"] for pod in _pods(ray=True) for c in pod["containers"] for mount in c["volumeMounts"]}
    environment = yaml.safe_load(MANIFEST["spec"]["runtimeEnvYAML"])["env_vars"]
    assert {str(Path(folder).parents[-2]) for folder in (options.out, environment["GLR_DATA"])} == mounts


def test_the_runtime_environment_agrees_with_that_of_submitted_jobs():
    submitted = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())["env_vars"]
    assert submitted.items() <= yaml.safe_load(MANIFEST["spec"]["runtimeEnvYAML"])["env_vars"].items()


@pytest.mark.parametrize("pod", [0, 1, 2], ids=["submitter", "head", "worker"])
def test_no_pod_is_privileged_and_every_volume_and_resource_is_named(pod):
    pod = _pods()[pod]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    for container in pod["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys() & container["resources"]["requests"].keys()
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
    assert MANIFEST["spec"]["rayClusterSpec"]["authOptions"]["mode"] == "token"


def _pods(*, ray: bool = False) -> list[dict]:
    spec = MANIFEST["spec"]
    cluster = spec["rayClusterSpec"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    templates = (
        [pod["template"] for pod in pods] if ray else [spec["submitterPodTemplate"], *(p["template"] for p in pods)]
    )
    return [template["spec"] for template in templates]
