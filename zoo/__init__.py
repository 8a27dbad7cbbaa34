"""Trained agents, their hyper-parameters and the command line to train and watch them."""
