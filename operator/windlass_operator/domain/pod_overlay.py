"""Keep what a user's pod overlay may shape, drop what would weaken isolation or confuse the operator.

The schema offers no security fields at all; what is left to guard are labels and annotations with a meaning,
tolerations that open every node, and environment variables that change what the process may load or see.
"""

from __future__ import annotations

from typing import Final

from windlass_operator.api.meta import GROUP, Toleration
from windlass_operator.api.v1alpha1.inference_service import PodTemplate
from windlass_operator.domain.decision import Decision, decide

_OUR_LABELS: Final = ("app.kubernetes.io/", f"{GROUP}/", "pod-template-hash")
_OUR_ANNOTATIONS: Final = (
    f"{GROUP}/",
    "argocd.argoproj.io/",
    "kubectl.kubernetes.io/",
    "container.apparmor.security.beta.kubernetes.io/",
    "seccomp.security.alpha.kubernetes.io/",
    "container.seccomp.security.alpha.kubernetes.io/",
    "k8s.v1.cni.cncf.io/",
)
_OUR_ENVIRONMENT: Final = (
    "NVIDIA_",
    "CUDA_VISIBLE_DEVICES",  # would show a pod devices it was not given
    "LD_",
    "PYTHON",  # would load code that is not in the image
    "HOME",
    "HF_HOME",
    "WINDLASS_",
)
_NODE_TAINTS: Final = ("node-role.kubernetes.io/", "node.kubernetes.io/")


def guard_overlay(template: PodTemplate) -> tuple[PodTemplate, tuple[Decision, ...]]:
    """Return the overlay to render, and a decision that names what was dropped."""
    kept = template.model_copy(
        update={
            "labels": {key: value for key, value in template.labels.items() if not key.startswith(_OUR_LABELS)},
            "annotations": {
                key: value for key, value in template.annotations.items() if not key.startswith(_OUR_ANNOTATIONS)
            },
            "env": [item for item in template.env if not item.name.startswith(_OUR_ENVIRONMENT)],
            "tolerations": [item for item in template.tolerations if _tolerable(item)],
        }
    )
    dropped = [
        *(f"label {key}" for key in template.labels if key not in kept.labels),
        *(f"annotation {key}" for key in template.annotations if key not in kept.annotations),
        *(f"environment variable {item.name}" for item in template.env if item not in kept.env),
        *(
            f"toleration of {item.key or 'every taint'}"
            for item in template.tolerations
            if item not in kept.tolerations
        ),
    ]
    if not dropped:
        return kept, ()
    return kept, (
        decide(
            "pod template",
            "dropped " + ", ".join(dropped),
            "these keys belong to the platform: they decide isolation, selection or what the process loads",
        ),
    )


def _tolerable(toleration: Toleration) -> bool:
    return bool(toleration.key) and not toleration.key.startswith(_NODE_TAINTS)
