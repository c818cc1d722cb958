#!/usr/bin/env bash
# Build the control plane for the end-to-end tests from pinned Go modules. Prints the folder that holds the binaries.
# Cached by version outside the tree; binaries found in KUBEBUILDER_ASSETS win and nothing is built for them.
set -euo pipefail
cd "$(dirname "$0")"

KUBERNETES=$(sed -n 's/^require k8s.io\/kubernetes //p' kubernetes/go.mod)
PINS=$(cat */go.mod | sha256sum | cut -c1-12)
BIN="${WINDLASS_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/windlass/e2e}/$KUBERNETES-$PINS"
mkdir -p "$BIN"

build() {  # build NAME FOLDER PACKAGE [LDFLAGS]: one binary, written aside and renamed so that a killed build leaves nothing half done
    local name=$1 folder=$2 package=$3 ldflags=${4:-}
    if [ -x "${KUBEBUILDER_ASSETS:-/nonexistent}/$name" ] || [ -x "$BIN/$name" ]; then return; fi
    command -v go >/dev/null || { echo "missing: $name (no Go toolchain to build it with)" >&2; return; }
    echo "building $name, once for this version; minutes on a cold cache" >&2
    (cd "$folder" && CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -trimpath -ldflags "-s -w $ldflags" -o "$BIN/.$name.$$" "$package")
    mv "$BIN/.$name.$$" "$BIN/$name"
}

MINOR=${KUBERNETES#v1.}; MINOR=${MINOR%%.*}
STAMP="-X k8s.io/component-base/version.gitVersion=$KUBERNETES -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$MINOR"
build etcd etcd .
for name in kube-apiserver kube-controller-manager kube-scheduler; do
    build "$name" kubernetes "k8s.io/kubernetes/cmd/$name" "$STAMP"
done
build kwok kwok sigs.k8s.io/kwok/cmd/kwok
echo "$BIN"
