"""`windlass-runtime simulate` in the place of `serve`, for runs of many replicas without a model.

The last part of the model's address says how it behaves: `.../bad` fails every other request, `.../slow` takes half a
second to the first token.
"""

from __future__ import annotations

import os
import pathlib
import sys

from windlass_contract.launch_spec import LaunchSpec

TROUBLE = {"bad": ("--failure-share", "0.5"), "slow": ("--step-s", "0.5")}


def main() -> None:
    """Become the simulated replica."""
    _, _, flag, file = sys.argv
    assert flag == "--launch-spec"
    spec = LaunchSpec.from_json(pathlib.Path(file).read_text())
    trouble = TROUBLE.get(spec.model_uri.rpartition("/")[2], ())
    command = ["-m", "windlass_runtime", "simulate", "--profile", "instant", "--launch-spec", file, *trouble]
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()
