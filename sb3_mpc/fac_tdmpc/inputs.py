"""What users give to Fac-TDMPC: an expert, and the data that it is distilled from."""

from pathlib import Path
from typing import Any

from stable_baselines3.common.save_util import load_from_pkl

from sb3_mpc.common.algorithm import WorldModelAlgorithm
from sb3_mpc.common.buffers.sequence_buffer import SequenceReplayBuffer
from sb3_mpc.common.buffers.sources import RecordedData
from sb3_mpc.common.files import explain_damage
from sb3_mpc.common.offline_training import check_fits
from sb3_mpc.common.policies.multitask import MultitaskWorldModelPolicy


def check_expert(expert: Any) -> None:
    """
    :param expert: what the user gave
    :raises ValueError: if it is no agent that can be distilled
    """
    if not isinstance(expert, WorldModelAlgorithm):
        raise ValueError(
            f"expert={expert!r:.80} is not an agent of this package: load it first, for example by TDMPC2.load."
        )
    if isinstance(expert.policy, MultitaskWorldModelPolicy):
        raise ValueError("FacTDMPC distils agents of one task: train the expert without MultitaskWorldModelPolicy.")


def check_data(data: Any, expert: WorldModelAlgorithm) -> SequenceReplayBuffer | RecordedData:
    """
    :param data: replay buffer, its file, a data set, or None for the expert's buffer
    :param expert: agent whose spaces the data must have
    :return: the replay buffer or the data set
    :raises ValueError: if it is something else, is empty or has other spaces
    """
    data = expert.replay_buffer if data is None else data
    if isinstance(data, (str, Path)):
        if Path(data).is_dir():
            raise ValueError(f"{data} is a folder: use Dataset.load(...) if it is one of a data set.")
        with explain_damage(data, "replay buffer"):
            data = load_from_pkl(data)
        if isinstance(data, SequenceReplayBuffer):
            data.set_env(expert.env)
    if hasattr(data, "windows"):
        check_fits(data, expert.observation_space, expert.action_space)
        return data
    spaces = (expert.observation_space, expert.action_space)
    if not isinstance(data, SequenceReplayBuffer) or (data.observation_space, data.action_space) != spaces:
        raise ValueError(
            f"The replay buffer (a {type(data).__name__}) does not hold sequences of the spaces {spaces}: give a "
            "file written by save_replay_buffer() of an agent with these spaces."
        )
    if data.size() == 0:
        raise ValueError(
            "The replay buffer is empty: give replay_buffer, a file written by save_replay_buffer() of the expert, "
            "or a Dataset, such as `python -m sb3_mpc.zoo collect` records with an agent."
        )
    return data
