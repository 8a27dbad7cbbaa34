"""Trained agents as files that hold data only: reading one executes nothing."""

from sb3_mpc.agents.agent_files import build_agent, load_agent, save_agent
from sb3_mpc.agents.agent_format import read_card

__all__ = ["build_agent", "load_agent", "read_card", "save_agent"]
