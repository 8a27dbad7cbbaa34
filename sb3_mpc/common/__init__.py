"""What the methods share: networks, planner, replay buffers, policies and the training loop."""
