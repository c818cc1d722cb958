#!/usr/bin/env bash
# Build programs of one pinned Go module: module.sh FOLDER MODULE NAME=PACKAGE... . FOLDER holds the go.mod that pins it.
# Prints two lines: the folder of the programs, and that of the module's source, whose manifests tests apply.
# Cached outside the tree, in a folder named by the pins; minutes on a cold cache. A killed build leaves nothing half done,
# and the next one goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/$1"
module=$2
shift 2

version=$(sed -n "s|^require $module \(v[^ ]*\)$|\1|p" go.mod)
bin="${WINDLASS_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/windlass/e2e}/$(basename "$PWD")-$version-$(sha256sum go.mod | cut -c1-8)"
mkdir -p "$bin"
for program in "$@"; do
    name=${program%%=*}
    if [ -x "$bin/$name" ]; then continue; fi
    echo "building $name of $(basename "$bin"), once; minutes on a cold cache" >&2
    CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -trimpath -ldflags "-s -w" -o "$bin/.$name.$$" "${program#*=}"
    mv "$bin/.$name.$$" "$bin/$name"
done
echo "$bin"
go list -mod=readonly -m -f '{{.Dir}}' "$module"
