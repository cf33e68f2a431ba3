"""Detectors that reconstruct frozen features: what UniAD and its baselines share, their blocks, and what their maps show."""
