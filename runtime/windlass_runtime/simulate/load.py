"""Put a simulated replica where a loaded model would be; a ModelLoader for `serve.process`."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

from windlass_contract.launch_spec import LaunchSpec
from windlass_runtime.launch import LoadedModel, ModelLoader
from windlass_runtime.simulate.backend import SimulatedBackend, SimulatedSampler
from windlass_runtime.simulate.codec import SimulatedCodec
from windlass_runtime.simulate.profile import Profile


def die(reason: str) -> None:
    """End the process on the spot, as a killed one ends: no drain, no farewell."""
    sys.stderr.write(f"windlass-runtime: simulated crash: {reason}\n")
    sys.stderr.flush()
    os._exit(1)


def build_loader(profile: Profile, crash: Callable[[str], None] = die) -> ModelLoader:
    """A loader that takes the profile's time and then starts its clock for a crash."""

    def load(spec: LaunchSpec) -> LoadedModel:
        time.sleep(profile.load_s)
        if profile.crash_after_s:
            timer = threading.Timer(profile.crash_after_s, crash, [f"{profile.crash_after_s:g} s have passed"])
            timer.daemon = True
            timer.start()
        limit = min(spec.max_sequence_tokens or profile.max_sequence_tokens, profile.max_sequence_tokens)
        return LoadedModel(SimulatedBackend(profile, limit, crash), SimulatedCodec(), SimulatedSampler(profile))

    return load
