"""The fast engine: any quantised graph, exact to the bit, layer by layer over all timesteps at once."""

from stars_deploy.engine.fast import DEFAULT_MEMORY, FastEngine, FastRun, run_fast

__all__ = ["DEFAULT_MEMORY", "FastEngine", "FastRun", "run_fast"]
