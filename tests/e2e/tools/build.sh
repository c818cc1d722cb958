#!/usr/bin/env bash
# Build what the end-to-end tests run from pinned Go modules: build.sh [MINOR...], all known Kubernetes minors by default.
# Prints one line per minor: the minor, then the folders that hold its binaries, separated by colons.
# Each module is cached in a folder of its own, named by its pins, outside the tree. A binary that KUBEBUILDER_ASSETS or PATH
# offers is not built again; of the Kubernetes binaries only one of the right minor counts.
set -euo pipefail
cd "$(dirname "$0")"

ROOT="${WINDLASS_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/windlass/e2e}"
MINORS=("$@")
[ ${#MINORS[@]} -gt 0 ] || for folder in kubernetes-*; do MINORS+=("${folder#kubernetes-}"); done

offered() {  # offered NAME VERSION: the machine has it, and `NAME --version` names that version where one is asked for
    local place found
    for place in "${KUBEBUILDER_ASSETS:-}" "$PATH"; do
        found=$(PATH="$place" type -P "$1") || continue
        if [ -z "$2" ] || { "$found" --version || "$found" version --client; } 2>/dev/null | grep -q "$2"; then return 0; fi
    done
    return 1
}

build() {  # build FOLDER BINARY PACKAGE [VERSION [LDFLAGS]]: written aside and renamed, so that a killed build leaves nothing half done
    local folder=$1 name=$2 package=$3 version=${4:-} ldflags=${5:-} bin
    bin=$(cache "$folder")
    if [ -x "$bin/$name" ] || offered "$name" "$version"; then return; fi
    command -v go >/dev/null || { echo "missing: $name (no Go toolchain to build it with)" >&2; return; }
    echo "building $name of $(basename "$bin"), once; minutes on a cold cache" >&2
    mkdir -p "$bin"
    (cd "$folder" && CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -trimpath -ldflags "-s -w $ldflags" -o "$bin/.$name.$$" "$package")
    mv "$bin/.$name.$$" "$bin/$name"
}

pinned() { sed -n 's/^require [^ (]* \(v.*\)$/\1/p' "$1/go.mod" | head -n 1; }
cache() { echo "$ROOT/$1-$(pinned "$1")-$(sha256sum "$1/go.mod" | cut -c1-8)"; }

build etcd etcd .
build kwok kwok sigs.k8s.io/kwok/cmd/kwok
build helm helm helm.sh/helm/v4/cmd/helm
build helm-3 helm-3 helm.sh/helm/v3/cmd/helm
for minor in "${MINORS[@]}"; do
    folder="kubernetes-$minor"
    version=$(pinned "$folder")
    stamp="-X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${minor#1.}"
    for name in kube-apiserver kube-controller-manager kube-scheduler; do
        build "$folder" "$name" "k8s.io/kubernetes/cmd/$name" "v$minor." "$stamp"
    done
    build "$folder" kubectl k8s.io/kubernetes/cmd/kubectl "v$minor." "$stamp"
    echo "$minor $(cache "$folder"):$(cache etcd):$(cache kwok):$(cache helm):$(cache helm-3)"
done
