"""The learning rate over the run: linear warm-up, then cosine or steps."""

import math

from sqt_fast.train.recipes import TrainRecipe


def rate(recipe: TrainRecipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of step number ``step`` (from 0), in parts of the recipe's lr.

    Warm-up is by step, from ``warmup_lr``; after it the cosine is by step too, and steps are by epoch.
    """
    warmup, total = recipe.warmup_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch
    if step < warmup:
        return recipe.warmup_lr + (1 - recipe.warmup_lr) * step / warmup
    if recipe.schedule == "steps":
        epoch = step // steps_per_epoch
        return float(0.1 ** sum(epoch >= milestone for milestone in recipe.milestones))
    done = min((step - warmup) / max(total - 1 - warmup, 1), 1.0)
    return recipe.final_lr + (1 - recipe.final_lr) * 0.5 * (1 + math.cos(math.pi * done))
