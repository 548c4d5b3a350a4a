"""Training: ``tivtok train CONFIG.toml`` or `train`."""

from tivtok.training.config import TrainConfig
from tivtok.training.loop import TrainingError, TrainingStopped, leave_processes, train

__all__ = ["TrainConfig", "TrainingError", "TrainingStopped", "leave_processes", "train"]
