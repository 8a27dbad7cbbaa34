"""Callbacks that measure during training, for every method."""

from sb3_mpc.common.callbacks.latents import LatentTrajectoryCallback as LatentTrajectoryCallback
from sb3_mpc.common.callbacks.latents import TaskEmbeddingCallback as TaskEmbeddingCallback
from sb3_mpc.common.callbacks.measurement import Measurement as Measurement
from sb3_mpc.common.callbacks.planner import PlannerGapCallback as PlannerGapCallback
from sb3_mpc.common.callbacks.planner import SearchMismatchCallback as SearchMismatchCallback
from sb3_mpc.common.callbacks.values import OverestimationCallback as OverestimationCallback
