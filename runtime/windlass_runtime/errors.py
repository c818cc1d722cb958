"""The runtime's exceptions. The type says what the caller can do.

RuntimeFault
├── CheckpointError        the model folder is unusable; names file or tensor, expected and found
│   ├── UnsupportedModel   the architecture or one of its options is not implemented
│   ├── RecipeError        the recipe is damaged, of another version, or of another model
│   └── GateError          sparse activation lacks a gate, or that one is damaged or of another model, recipe or version
├── CalibrationError       a recipe or a gate cannot be made of these inputs; names what is missing
├── QualityMissed          a recipe was made and is not good enough; names thresholds and worst layers
├── EngineError            a TensorRT plan cannot be built or used; names the layer or the field, and the fix
│   ├── EngineUnavailable  no TensorRT here that could do it; names the package to install
│   └── EngineMismatch     a plan is sound, but for another GPU, version, model or plugin set
├── BatchError             a batch cannot go on now; what is done is kept, run it again
│   └── BatchInputError    the input or the results folder is at fault; running it again does not help
├── CapacityError          the machine is too small for the request; says the bytes needed and had
├── RequestError           the client must change the request (HTTP 400)
│   └── PromptTooLong      prompt plus requested output exceed the limit
├── DeadlineMissed         the request waited longer than it allowed; ask again with more time (HTTP 504)
├── QueueFull              no room to wait; try another replica or later (HTTP 429)
├── StepFailed             the device failed while computing; the request may be sent again (HTTP 500)
├── NotServing             the model is not loaded, or its engine is broken; try another replica (HTTP 503)
└── Draining               this replica is going away; try another (HTTP 503)
"""

from __future__ import annotations


class RuntimeFault(Exception):
    """Base of everything this package raises on purpose."""


class CheckpointError(RuntimeFault):
    """The checkpoint cannot be loaded as it is."""


class UnsupportedModel(CheckpointError):
    """The checkpoint is sound, but asks for something not implemented."""


class RecipeError(CheckpointError):
    """The recipe cannot be used with this model by this version."""


class GateError(CheckpointError):
    """The gate of sparse activation cannot be used with this model, recipe, device or version."""


class CalibrationError(RuntimeFault):
    """Calibration, or the training of a gate, cannot start, or go on, with these inputs."""


class QualityMissed(RuntimeFault):
    """The finished recipe misses a threshold of its quality gate."""


class EngineError(RuntimeFault):
    """TensorRT refuses a network, or a plan is damaged."""


class EngineUnavailable(EngineError):
    """The package or the device that the work needs is not here."""


class EngineMismatch(EngineError):
    """The plan was built for something else than what is here."""


class BatchError(RuntimeFault):
    """A batch stopped before its end; finished rows are kept."""


class BatchInputError(BatchError):
    """The batch's input, or its results folder, is not what it should be."""


class CapacityError(RuntimeFault):
    """Weights or cache do not fit; the message shows the arithmetic."""


class RequestError(RuntimeFault):
    """The request is at fault. `parameter` names the field of the request body, empty for the body as a whole."""

    def __init__(self, message: str, parameter: str = "") -> None:
        super().__init__(message)
        self.parameter = parameter


class PromptTooLong(RequestError):
    """Prompt plus output do not fit the sequence limit."""


class DeadlineMissed(RuntimeFault):
    """The time allowed for the first token passed before the request began."""


class QueueFull(RuntimeFault):
    """Too many requests wait already."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StepFailed(RuntimeFault):
    """An engine step failed; this request's work is lost."""


class NotServing(RuntimeFault):
    """No engine takes requests here, now."""


class Draining(RuntimeFault):
    """The replica accepts no new requests."""
