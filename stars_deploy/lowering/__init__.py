"""From the float graph as it was drawn to layers of integers at scales that are known.

:mod:`~stars_deploy.lowering.passes` rewrites a float graph until only sources, projections, delays and populations are
left; :mod:`~stars_deploy.lowering.layers` reads it as layers; :mod:`~stars_deploy.lowering.rounding` rounds those at
given scales. Which scales are good is for :mod:`stars_deploy.export` to find.
"""
