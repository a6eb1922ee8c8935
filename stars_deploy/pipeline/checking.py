"""Before any training: does a network fit a chip, what does it take of it, and which layer to change first."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stars_deploy.config import BuildConfig
from stars_deploy.errors import GraphError, QuantizationError, StarsDeployError, TargetError, TeacherError
from stars_deploy.export.calibration import calibrate_graph
from stars_deploy.export.quantization import quantize_graph
from stars_deploy.hardware import ChipProfile, load_profile
from stars_deploy.hardware.advice import Advice, advise
from stars_deploy.hardware.mapping import Mapping, map_network
from stars_deploy.lowering.passes import canonicalize, lower
from stars_deploy.pipeline.models import Reading, open_model
from stars_deploy.pipeline.quantising import Importing, quantise_model
from stars_deploy.pipeline.samples import noise_images
from stars_deploy.quantized import QuantizedGraph

# torch is imported where it is needed: a file of integers shall not wait for it.
if TYPE_CHECKING:
    from stars_deploy.teacher import Teacher

#: What is opened as a network that exists already; anything else is a teacher.
MODEL_FILES = (".npz", ".net", ".onnx", ".nir")
#: Noise images to quantise on where only the places of neurons and synapses matter.
_PLANNING_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """What :func:`check_network` found.

    Parameters
    ----------
    subject : str
    kind : str
        What was mapped: the network of a file, or the student that a teacher would get.
    profile : ChipProfile
    mapping : Mapping or None
        None where there is no network to map, because a layer has no spiking counterpart.
    obstacles : tuple of StarsDeployError
        Why there is none.
    advice : Advice or None
        The layer to change first.
    """

    subject: str
    kind: str
    profile: ChipProfile
    mapping: Mapping | None
    obstacles: tuple[StarsDeployError, ...] = ()
    advice: Advice | None = None

    @property
    def fits(self) -> bool:
        """Whether everything maps."""
        return self.mapping is not None and not self.mapping.problems

    def summary(self) -> dict[str, Any]:
        """Return all of it as JSON."""
        found = [
            {"layer": error.where, "limit": "layers", "got": str(error.got), "allowed": error.allowed,
             "remedy": error.remedy}
            for error in self.obstacles
        ]  # fmt: skip
        content: dict[str, Any] = {
            "subject": self.subject,
            "kind": self.kind,
            "hardware": self.profile.name,
            "fits": self.fits,
            "problems": found,
            "change_first": None if self.advice is None else asdict(self.advice),
        }
        if self.mapping is None:
            return content
        return {
            **content,
            "problems": [*found, *(asdict(problem) for problem in self.mapping.problems)],
            "cores": len(self.mapping.cores),
            "chips": self.mapping.chips,
            "utilisation": {name: list(pair) for name, pair in self.mapping.utilisation().items()},
            "layers": [asdict(layer) for layer in self.mapping.layers],
            "notes": list(self.mapping.notes),
        }


def check_network(
    subject: str,
    *,
    hardware: str = "loihi2",
    timesteps: int | None = None,
    reading: Reading | None = None,
    importing: Importing | None = None,
    config: BuildConfig | None = None,
) -> Checkup:
    """Map a network, or the student that a teacher would get, onto a chip; nothing is trained or run on data.

    Parameters
    ----------
    subject : str
        A built or exported directory, a ``student.safetensors``, a ``.npz``, ``.net``, ``.onnx`` or ``.nir``; else a
        teacher as :func:`stars_deploy.teacher.load_teacher` takes it, which needs no weights for this. Of a teacher,
        the untrained student is quantised on noise: where its neurons and synapses go does not depend on what it
        learns.
    hardware : str
        A chip profile.
    timesteps : int, optional
        In place of the network's own, or for a file that does not say.
    reading : Reading, optional
        How a ``.net`` is read.
    importing : Importing, optional
        What a ``.nir`` does not say.
    config : BuildConfig, optional
        For a teacher: its weights and input, the student, bits and timesteps of the build to come.

    Raises
    ------
    StarsDeployError
        If `subject` cannot be opened at all, or the profile is not valid.
    """
    profile = load_profile(hardware)
    settings = config or BuildConfig()
    place = Path(subject)
    if place.is_dir() or place.suffix in MODEL_FILES:
        graph, kind = _existing(place, timesteps, reading, importing or Importing(), settings)
    elif _is_student(place):
        graph = quantise_model(place, timesteps, settings.bits, settings.input_bits, Importing()).graph
        kind = f"the student of the file, {settings.bits} bits"
    else:
        return _check_teacher(subject, profile, settings)
    return _mapped(subject, kind, profile, graph)


def _existing(
    place: Path, timesteps: int | None, reading: Reading | None, importing: Importing, settings: BuildConfig
) -> tuple[QuantizedGraph, str]:
    if place.suffix == ".nir":
        found = quantise_model(place, timesteps, None, None, importing)
        return found.graph, f"the network of the file, {settings.bits} bits"
    # Where neurons go does not depend on T; a file that does not state its own is opened for one timestep.
    model = open_model(place, timesteps or 1, reading)
    return model.graph, "the network as it is"


def _is_student(place: Path) -> bool:
    if place.suffix != ".safetensors":
        return False
    from stars_deploy.weights import read_tensors  # torch is loaded for this only

    return isinstance(read_tensors(place)[1].get("student"), dict)


def _check_teacher(subject: str, profile: ChipProfile, settings: BuildConfig) -> Checkup:
    kind = f"the {settings.student.spec} student that it would get, untrained, {settings.bits} bits"
    teacher = _outline(subject, settings)
    try:
        graph = plan_student(teacher, settings)
    except (TeacherError, GraphError, QuantizationError, TargetError) as error:
        first = Advice(layer=error.where, reason=str(error.got), remedy=error.remedy)
        return Checkup(subject=subject, kind=kind, profile=profile, mapping=None, obstacles=(error,), advice=first)
    return _mapped(subject, kind, profile, graph)


def _outline(subject: str, settings: BuildConfig) -> Teacher:
    from stars_deploy.teacher import load_teacher, untrained_teacher

    asked = settings.teacher
    form: dict[str, Any] = {"input_shape": asked.input_shape, "mean": asked.mean, "std": asked.std}
    if asked.weights is None and subject != "digits" and not subject.endswith(".safetensors"):
        return untrained_teacher(subject, classes=asked.classes, **form)
    return load_teacher(subject, asked.weights, classes=asked.classes, trust_weights=asked.trust_weights, **form)


def plan_student(teacher: Teacher, settings: BuildConfig) -> QuantizedGraph:
    """Return the integer network of the student that `teacher` would get, untrained, quantised on noise.

    Raises
    ------
    TeacherError, GraphError, QuantizationError, TargetError
        If a layer has no spiking counterpart, or what it makes cannot be quantised.
    """
    from stars_deploy.export.trace import trace_student
    from stars_deploy.student import NeuronModel, build_student

    asked = settings.student
    neuron = NeuronModel(decay=asked.decay, surrogate_width=asked.surrogate_width)
    student, _ = build_student(teacher, asked.spec, settings.timesteps, neuron, asked.balance)
    lowered = lower(canonicalize(trace_student(student, teacher.labels)))
    images = noise_images(_PLANNING_IMAGES, tuple(lowered.input.shape))
    found = calibrate_graph(lowered, images, settings.bits, settings.input_bits)
    return quantize_graph(lowered, settings.bits, found.input_bits, found.shares)


def _mapped(subject: str, kind: str, profile: ChipProfile, graph: QuantizedGraph) -> Checkup:
    mapping = map_network(graph, profile)
    return Checkup(subject=subject, kind=kind, profile=profile, mapping=mapping, advice=advise(mapping))
