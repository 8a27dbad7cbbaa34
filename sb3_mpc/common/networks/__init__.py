"""Networks of the world model and their losses, independent of planner and policy."""
