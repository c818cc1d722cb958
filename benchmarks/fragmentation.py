"""Compare placements of a GPUClass on a real scheduler: what is left for work that needs whole nodes.

    PYTHONPATH=tests python benchmarks/fragmentation.py --nodes 12 --devices 8 --output build/fragmentation.json

Single-GPU services come one by one, as in `tests/support/packing.py`; then every node is asked for once as a whole. The
control plane is etcd, kube-apiserver and kube-scheduler with their defaults, the nodes are simulated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

from support.control_plane import running_control_plane
from support.kube_client import KubeClient
from support.packing import Trial, run_trial

PLACEMENTS = ("Spread", "Pack")


def main() -> int:
    """Run every share of busy devices with every placement; print Markdown, write every figure as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=12)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.125, 0.25, 0.5])
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    figures = []
    print("| busy devices | placement | nodes in use | lost to fragmentation | whole nodes placed |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, running_control_plane(Path(folder)) as plane:
        kube = KubeClient(plane.admin)
        for share in asked.shares:
            replicas = round(share * asked.nodes * asked.devices)
            for placement in PLACEMENTS:
                trial = run_trial(kube, placement, nodes=asked.nodes, devices=asked.devices, replicas=replicas)
                print(render_row(replicas, placement, trial), flush=True)
                figures.append({"replicas": replicas, "placement": placement, **dataclasses.asdict(trial)})
    if asked.output is not None:
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        asked.output.write_text(json.dumps({"nodes": asked.nodes, "devices": asked.devices, "trials": figures}))
    return 0


def render_row(replicas: int, placement: str, trial: Trial) -> str:
    """One row of the table."""
    lost = f"{trial.fragmentation.lost} of {trial.fragmentation.free} free"
    return f"| {replicas} | {placement} | {trial.nodes_in_use} | {lost} | {trial.whole_placed} of {trial.whole_asked} |"


if __name__ == "__main__":
    sys.exit(main())
