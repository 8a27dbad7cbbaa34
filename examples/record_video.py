"""Film a saved agent; without a display too."""

import argparse

import sb3_mpc.envs  # noqa: F401  (registers the dmc/... ids)
from sb3_mpc import TDMPC2
from sb3_mpc.envs.video import record_video

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", default="demo/tdmpc2.zip", help="file of model.save(), as make demo leaves one")
parser.add_argument("--env", default="dmc/cartpole-swingup-v0", help="environment that it was trained in")
parser.add_argument("--episodes", type=int, default=1)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

model = TDMPC2.load(args.model)
# Drawing needs OpenGL (EGL or OSMesa on a machine without a display); without it, this line says what to install.
for path in record_video(model, args.env, "videos", episodes=args.episodes, seed=args.seed):
    print(f"Video: {path}")
