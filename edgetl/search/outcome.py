"""What came of one trial: the truth of a search, one JSON file each; the study in the database is made of them."""

from dataclasses import dataclass, field
from typing import Literal

State = Literal["complete", "pruned", "infeasible", "failed"]
Objective = Literal["accuracy", "int8_accuracy", "latency_ms", "size_kb"]
"""accuracy: the task's figure on validation photos, of the Keras model; int8_accuracy: of its int8 file, likewise.
latency_ms: median of an invocation of the int8 file on this machine, one thread. size_kb: of that file, 1000 bytes."""
MORE_IS_BETTER: dict[Objective, bool] = {"accuracy": True, "int8_accuracy": True, "latency_ms": False, "size_kb": False}


@dataclass(frozen=True)
class Outcome:
    """One trial, finished."""

    number: int
    params: dict[str, str | int | float]
    """Value of each knob, as the study stores it."""
    state: State
    """pruned: stopped, for it was behind the others; infeasible: keeps not all limits, and was not trained; failed:
    these settings can't be trained, whenever it is tried."""
    splits_sha256: str
    """Hash of all photos, labels, groups and splits: trials of others can't be compared."""
    figures: dict[str, float] = field(default_factory=dict)
    """What is known, by name of the objective; of a pruned trial the last validation figure."""
    curve: tuple[float, ...] = ()
    """Validation figure after each epoch."""
    rungs: dict[str, float] = field(default_factory=dict)
    """What the pruner noted for trials to come."""
    excess: dict[str, float] = field(default_factory=dict)
    """Limit -> by which share it is exceeded; 0 or less: kept."""
    seconds: float = 0.0
    """Wall time of the trial."""
    remark: str = ""
    """Why it was not completed."""
    schema_version: int = 1

    @property
    def feasible(self) -> bool:
        """Whether it keeps all limits."""
        return all(share <= 0 for share in self.excess.values())
