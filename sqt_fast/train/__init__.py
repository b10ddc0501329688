"""Training: recipes, lists of videos, what becomes of them on their way into the network, and the loop.

The loop, mixed precision, several GPUs and checkpoints are Lightning's. Nothing here knows the engine.
"""
