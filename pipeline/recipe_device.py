"""What a recipe asks of the device that it names, and that device cannot do: told before anything is trained."""

from __future__ import annotations

from distilledge.models.errors import UsageError
from distilledge.pipeline.inventory import LOCAL, entry_of, load
from distilledge.pipeline.recipe import Recipe


def check_device(recipe: Recipe) -> None:
    """Raise ``UsageError`` (exit 2). Reads devices.yaml; reaches nothing."""
    name = recipe.measure.device
    if name == LOCAL or entry_of(name, load()).kind != "browser":
        return
    from distilledge.targets.devices.browser_worker import RUNTIMES

    wrong = [target.runtime for target in recipe.export.targets if target.runtime not in RUNTIMES]
    if wrong:
        what = f"there is no {wrong[0]} for browsers, and measure.device {name} is one: export.targets"
        raise UsageError("E2085", what, f"leave {wrong[0]} out of export.targets, or measure it on another device")
    limited = [runtime for runtime, budget in recipe.budgets.items() if budget.max_peak_rss_mb is not None]
    if limited:
        what = f"a browser does not tell its peak memory, and measure.device {name} is one: budgets.{limited[0]}"
        raise UsageError("E2086", what, "leave max_peak_rss_mb out, or measure on another device")
