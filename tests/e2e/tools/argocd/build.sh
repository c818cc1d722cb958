#!/usr/bin/env bash
# Build Argo CD's application controller and repo server from the pinned module, and put its CRDs beside them.
# Prints the folder. Cached outside the tree, in a folder named by the pins; minutes on a cold cache.
set -euo pipefail
cd "$(dirname "$0")"

MODULE=github.com/argoproj/argo-cd/v3
version=$(sed -n "s|^[a-z\t ]*$MODULE \(v[^ ]*\)$|\1|p" go.mod)
pins=$(cat go.mod ./*.go | sha256sum | cut -c1-8)
bin="${WINDLASS_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/windlass/e2e}/argocd-$version-$pins"
if [ ! -x "$bin/argocd" ]; then
    echo "building argocd of $(basename "$bin"), once; minutes on a cold cache" >&2
    mkdir -p "$bin/crds"
    go mod download "$MODULE"  # a module that was never downloaded has no folder to copy from
    cp "$(go list -mod=readonly -m -f '{{.Dir}}' "$MODULE")"/manifests/crds/app*-crd.yaml "$bin/crds/"
    chmod -R u+w "$bin/crds"
    CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -trimpath -ldflags "-s -w" -o "$bin/.argocd.$$" .
    mv "$bin/.argocd.$$" "$bin/argocd"
fi
echo "$bin"
