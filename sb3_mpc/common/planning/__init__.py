"""The planner and what it draws."""
