"""What the five methods share: networks, planner, replay of sequences, policy and training loop."""
