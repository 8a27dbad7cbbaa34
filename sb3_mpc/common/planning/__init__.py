"""The planner, its random numbers and its plans."""
