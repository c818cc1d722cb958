#!/usr/bin/env bash
# Run the end-to-end tests on every pinned Kubernetes minor, all minors at the same time: run.sh [FILES AND PYTEST FLAGS...].
# Each line of output begins with the minor it tells of. What fails is run once more, alone, because shared machines have slow
# minutes; the output shows both. Exits with 1 when something failed twice. WINDLASS_E2E_WORKERS=2 gives each minor two control
# planes, which share the test files: most tests wait more than they compute.
set -uo pipefail
cd "$(dirname "$0")/../.."

pytest=${PYTEST:-.venv/bin/pytest}
[ $# -gt 0 ] || set -- tests/e2e
if [ -n "${WINDLASS_E2E_KUBECONFIG:-}" ]; then exec "$pytest" -q "$@"; fi
mkdir -p build
workers=${WINDLASS_E2E_WORKERS:-1}
unset WINDLASS_E2E_WORKERS  # commands under test refuse settings that they do not know
shared=()
[ "$workers" -le 1 ] || shared=(--numprocesses "$workers" --dist loadfile)

run() {  # run MINOR ARGUMENTS...
    local minor=$1
    shift
    "$pytest" -q --kubernetes "$minor" -o cache_dir="build/e2e-cache-$minor" --junit-xml "build/e2e-$minor.xml" "$@" 2>&1 | sed -u "s/^/[$minor] /"
}

runs=()
for folder in tests/e2e/tools/kubernetes-*; do
    minor=${folder##*kubernetes-}
    (run "$minor" "${shared[@]}" "$@" || { echo "[$minor] once more, what failed"; run "$minor" --last-failed --last-failed-no-failures none "$@"; }) &
    runs+=($!)
done
failed=0
for run in "${runs[@]}"; do wait "$run" || failed=1; done
exit $failed
