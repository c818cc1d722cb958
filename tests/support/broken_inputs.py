"""What `windlass validate` must say about each file of tests/broken_inputs."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "broken_inputs"

Expected = tuple[int, str, str, str]
"""Line, field path, words within `found`, words within `expected`."""

BROKEN_INPUTS: dict[str, list[Expected]] = {
    "account-without-namespace.yaml": [
        (8, "spec.subjects[0].namespace", "none", "the namespace of the ServiceAccount"),
    ],
    "alias-bomb.yaml": [
        (5, "", "more than that with aliases expanded", "at most 100000 values in a document"),
    ],
    "bad-uri-scheme.yaml": [
        (7, "spec.model.uri", '"s3://bucket/model"', "hf://, pvc://, oci:// or file:// and no white space"),
    ],
    "bare-resource-name.yaml": [
        (7, "spec.resourceName", '"gpu"', "an extended resource such as nvidia.com/gpu"),
    ],
    "bare-text.yaml": [
        (1, "", '"just some text"', "a mapping with apiVersion, kind, metadata and spec"),
    ],
    "boolean-for-text.yaml": [
        (11, "spec.podTemplate.env[0].value", "boolean true (written yes)", "text (put it in quotes)"),
    ],
    "boolean-key.yaml": [
        (10, "", "on, which YAML does not read as text", "a key of text; put it in quotes"),
    ],
    "class-twice.yaml": [
        (9, "spec.accelerator.classes", "h200 more than once", "each GPUClass once"),
    ],
    "class-without-selector.yaml": [
        (6, "spec.nodeSelector", "0 entries", "a mapping of 1 to 32 entries"),
    ],
    "colon-in-value.yaml": [
        (7, "", "a syntax error: mapping values are not allowed in this context", "YAML"),
    ],
    "core-api-version.yaml": [
        (1, "apiVersion", '"v1"', "windlass.dev/v1alpha1"),
    ],
    "deep-nesting.yaml": [
        (1, "", "a document nested deeper than 64 levels", "fewer levels"),
    ],
    "duplicate-key.yaml": [
        (10, "", '"tier" again (first on line 8)', "each key once"),
    ],
    "duplicate-object.yaml": [
        (8, "metadata.name", "it again", "each object once"),
    ],
    "empty.yaml": [
        (1, "", "an empty file", "at least one document"),
    ],
    "env-from-secret.yaml": [
        (
            11,
            "spec.podTemplate.env[0].valueFrom",
            "an unknown field (did you mean value?)",
            "one of the fields name, value",
        ),
    ],
    "env-grabs-devices.yaml": [
        (
            10,
            "spec.podTemplate.env[0].name",
            '"NVIDIA_VISIBLE_DEVICES"',
            "a name that does not select devices, which accelerator does",
        ),
    ],
    "env-preloads-code.yaml": [
        (
            11,
            "spec.podTemplate.env[1].name",
            '"LD_PRELOAD"',
            "a name that does not change which code the runtime loads",
        ),
    ],
    "field-at-wrong-level.yaml": [
        (
            8,
            "spec.minReplicas",
            "an unknown field (did you mean replicas?)",
            "one of the fields model, replicas, scaling, suspend,",
        ),
    ],
    "floor-above-replicas.yaml": [
        (9, "spec.rollout.minAvailable", "2 with replicas 1", "at most replicas, or it can never hold"),
    ],
    "fraction-for-number.yaml": [
        (8, "spec.replicas", "number 1.5", "a whole number of 0 to 1000"),
    ],
    "generate-name.yaml": [
        (3, "metadata.name", "nothing", "text"),
    ],
    "huge-number.yaml": [
        (8, "spec.replicas", "number beyond 18 digits", "a whole number of 0 to 1000"),
    ],
    "key-in-clear.yaml": [
        (10, "spec.access.keys[0].sha256", '"not-a-digest"', "text of 64 characters"),
    ],
    "label-of-ours.yaml": [
        (9, "spec.podTemplate.labels", "windlass.dev/tenant", "labels outside windlass.dev/, kubernetes.io/ (with"),
    ],
    "label-value-number.yaml": [
        (6, "metadata.labels.year", "number 2026", "a label value: letters, digits, '-', '_' and '.', beginning and"),
    ],
    "latin-1.yaml": [
        (4, "", "the byte 0xe9", "UTF-8 text"),
    ],
    "list-for-mapping.yaml": [
        (6, "spec.model", "a list of 1", "a mapping"),
    ],
    "list-kind.yaml": [
        (7, "spec.isolation", '"None"', "one of Isolated, Open"),
    ],
    "list-of-objects.yaml": [
        (1, "", "a list of 1", "a mapping with apiVersion, kind, metadata and spec"),
    ],
    "local-tag.yaml": [
        (7, "", "the tag !secret", "plain YAML without tags"),
        (7, "spec.model.uri", '"name"', "text of 6 to 512 characters"),
    ],
    "lower-case-kind.yaml": [
        (2, "kind", '"gpuclass" (did you mean GPUClass?)', "one of InferenceService, Tenant, GPUClass"),
    ],
    "max-below-min.yaml": [
        (10, "spec.scaling.maxReplicas", "4 below 5", "at least minReplicas"),
    ],
    "memory-in-millibytes.yaml": [
        (9, "spec.cache.memory", '"8000m"', 'a positive size such as "8Gi" or "500M"'),
    ],
    "merge-of-text.yaml": [
        (6, "", "something else after <<", "a mapping, or a list of them, to merge"),
    ],
    "metric-twice.yaml": [
        (13, "spec.scaling.metrics[1]", "the same as in spec.scaling.metrics[0]", "a different type in each item"),
    ],
    "missing-api-version.yaml": [
        (1, "apiVersion", "nothing", 'text such as "windlass.dev/v1alpha1"'),
    ],
    "missing-kind.yaml": [
        (1, "kind", "nothing", "text such as InferenceService or Tenant or GPUClass"),
    ],
    "missing-metadata.yaml": [
        (1, "metadata", "nothing", "a mapping"),
    ],
    "missing-model.yaml": [
        (5, "spec.model", "nothing", "a mapping"),
    ],
    "missing-name.yaml": [
        (3, "metadata.name", "nothing", "text"),
    ],
    "missing-spec.yaml": [
        (1, "spec", "nothing", "a mapping"),
    ],
    "misspelt-field.yaml": [
        (
            8,
            "spec.model.servedname",
            "an unknown field (did you mean servedName?)",
            "one of the fields uri, servedName",
        ),
    ],
    "misspelt-group.yaml": [
        (1, "apiVersion", '"windlas.dev/v1alpha1" (did you mean windlass.dev?)', "windlass.dev/v1alpha1"),
    ],
    "misspelt-kind.yaml": [
        (
            2,
            "kind",
            '"InferenceServices" (did you mean InferenceService?)',
            "one of InferenceService, Tenant, GPUClass",
        ),
    ],
    "name-is-a-number.yaml": [
        (4, "metadata.name", "number 42", "text (put it in quotes)"),
    ],
    "name-too-long.yaml": [
        (
            4,
            "metadata.name",
            "a-name-that-leaves-no-room-for-the-children",
            "a name of at most 40 characters, because children add a suffix",
        ),
    ],
    "name-upper-case.yaml": [
        (4, "metadata.name", "Chat", "a name of lower-case letters, digits and dashes that begins"),
    ],
    "namespace-on-cluster-kind.yaml": [
        (5, "metadata.namespace", '"default"', "no namespace, because Tenant is cluster-scoped"),
    ],
    "namespace-with-two-owners.yaml": [
        (12, "spec.namespaces[1]", '"shared", which belongs to Tenant acme', "a namespace of no other tenant"),
    ],
    "negative-quota.yaml": [
        (10, "spec.quota.gpus[0].nominal", "number -1", "a whole number of 0 to 100000"),
    ],
    "no-namespaces.yaml": [
        (6, "spec.namespaces", "a list of 0", "a list of 1 to 64 items"),
    ],
    "not-a-number.yaml": [
        (8, "", "number .nan", "a finite number"),
        (8, "spec.replicas", '".nan"', "a whole number of 0 to 1000"),
    ],
    "nul-byte.yaml": [
        (2, "", "a character that YAML forbids", "printable text"),
    ],
    "null-spec.yaml": [
        (5, "spec", "null", "a mapping"),
    ],
    "null-value.yaml": [
        (8, "spec.scaling", "null", "a mapping"),
    ],
    "number-for-text.yaml": [
        (
            10,
            "spec.podTemplate.resources.cpu",
            "number 4",
            'a positive quantity such as "4", "500m" or "16Gi" (put it in',
        ),
    ],
    "number-out-of-range.yaml": [
        (9, "spec.limits.maxRunningRequests", "number 5000", "a whole number of 1 to 1024"),
        (10, "spec.limits.maxSequenceTokens", "number 8", "a whole number of 16 to 1048576"),
    ],
    "octal-for-text.yaml": [
        (
            10,
            "spec.podTemplate.labels.build",
            "number 493 (written 0755)",
            "a label value: letters, digits, '-', '_' and '.', beginning and",
        ),
    ],
    "old-api-version.yaml": [
        (
            1,
            "apiVersion",
            '"windlass.dev/v1beta1" (the only version of windlass.dev is v1alpha1)',
            "windlass.dev/v1alpha1",
        ),
    ],
    "only-comments.yaml": [
        (1, "", "nothing but blank lines and comments", "at least one document"),
    ],
    "pod-security-context.yaml": [
        (
            9,
            "spec.podTemplate.securityContext",
            "an unknown field",
            "one of the fields labels, annotations, nodeSelector,",
        ),
    ],
    "python-object.yaml": [
        (7, "", "the tag python/object/apply:os.system", "plain YAML without tags"),
        (7, "spec.model.uri", "a list of 1", "hf://, pvc://, oci:// or file:// and no white space"),
    ],
    "quota-class-twice.yaml": [
        (10, "spec.quota.gpus[1]", "the same as in spec.quota.gpus[0]", "a different name in each item"),
    ],
    "recursive-alias.yaml": [
        (6, "", "the alias *spec", "an anchor that is complete before its alias"),
    ],
    "replicas-and-scaling.yaml": [
        (8, "spec.replicas", "both", "either replicas or scaling, because one of them owns the number"),
    ],
    "second-document.yaml": [
        (6, "", "a syntax error: while parsing a flow node did not find expected node", "YAML"),
        (11, "spec.namespaces", "nothing", "a list"),
        (
            12,
            "spec.namespace",
            "an unknown field (did you mean namespaces?)",
            "one of the fields namespaces, quota,",
        ),
    ],
    "too-many-gpus.yaml": [
        (10, "spec.accelerator.count", "number 17", "a whole number of 1 to 16"),
    ],
    "snake-case.yaml": [
        (8, "spec.scaling.maxReplicas", "nothing", "a whole number of 1 to 1000"),
        (
            9,
            "spec.scaling.max_replicas",
            "an unknown field (did you mean maxReplicas?)",
            "one of the fields minReplicas, maxReplicas, metrics,",
        ),
    ],
    "syntax-error.yaml": [
        (7, "", "a syntax error: while parsing a flow mapping did not find expected", "YAML"),
    ],
    "system-namespace.yaml": [
        (6, "spec.namespaces", "kube-system", "namespaces outside kube-*, which belong to the cluster"),
    ],
    "tab.yaml": [
        (7, "", "a tab character", "spaces for indentation"),
    ],
    "terminal-escape.yaml": [
        (4, "metadata.name", "\\x1b[31mred\\x1b[0m", "a name of at most 63 lower-case letters, digits and dashes,"),
    ],
    "text-for-list.json": [
        (5, "spec.namespaces", '"a"', "a list"),
    ],
    "text-for-list.yaml": [
        (9, "spec.accelerator.classes", '"h200"', "a list"),
    ],
    "text-for-number.yaml": [
        (8, "spec.replicas", '"2"', "a whole number of 0 to 1000"),
    ],
    "tolerates-everything.yaml": [
        (9, "spec.podTemplate.tolerations", "a list of 1", "tolerations that name a taint, and none of"),
    ],
    "too-many-classes.yaml": [
        (9, "spec.accelerator.classes", "a list of 9", "a list of 1 to 8 items"),
    ],
    "unclosed-quote.yaml": [
        (8, "", "a syntax error: while scanning a quoted scalar found unexpected end", "YAML"),
    ],
    "unclosed.json": [
        (4, "", "a syntax error: while parsing a flow mapping did not find expected", "YAML"),
    ],
    "unknown-alias.yaml": [
        (5, "", "the alias *defaults", "an anchor that is complete before its alias"),
    ],
    "unknown-enum.yaml": [
        (8, "spec.tier", '"realtime" (did you mean Realtime?)', "one of Realtime, Standard, Batch"),
    ],
    "unknown-metadata.yaml": [
        (
            5,
            "metadata.label",
            "an unknown field (did you mean labels?)",
            "one of the fields name, namespace, labels, annotations,",
        ),
    ],
    "unknown-top-level.yaml": [
        (8, "data", "an unknown field", "one of the fields apiVersion, kind, metadata, spec, status"),
    ],
    "unsupported-precision.yaml": [
        (9, "spec.precision.preset", '"INT2"', "one of Auto, FP32, BF16, FP16, INT8, INT4"),
    ],
    "uri-escapes-volume.yaml": [
        (
            7,
            "spec.model.uri",
            '"pvc://models/../../etc/shadow"',
            "pvc://claim or pvc://claim/path, without .. in the path",
        ),
    ],
    "uri-with-space.yaml": [
        (7, "spec.model.uri", '"hf://org/name extra"', "hf://, pvc://, oci:// or file:// and no white space"),
    ],
    "user-with-namespace.yaml": [
        (10, "spec.subjects[0].namespace", '"ci"', "no namespace for a User or Group, which are cluster-wide"),
    ],
    "utf-16.yaml": [
        (1, "", "the byte 0xff", "UTF-8 text"),
    ],
    "version-read-as-number.yaml": [
        (8, "spec.computeCapability", "number 9.0", 'a compute capability such as "9.0" (put it in quotes)'),
    ],
    "wrong-unit.yaml": [
        (10, "spec.podTemplate.resources.memory", '"16GB"', 'a positive size such as "8Gi" or "500M"'),
    ],
    "zero-memory.yaml": [
        (9, "spec.cache.memory", '"0Gi"', 'a positive size such as "8Gi" or "500M"'),
    ],
}
