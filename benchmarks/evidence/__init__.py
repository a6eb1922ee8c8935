"""The evidence machine: arms x backbones x students x seeds, one process a run, paired statistics over the results.

RCA and TAR are reconstructed from the abstract of STARS (arXiv 2605.27409); the formulas are ours.
"""
