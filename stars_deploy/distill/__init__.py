"""Data-free distillation: synthesise images from the teacher, and let the student follow it on them.

The distiller is handed a teacher, never a data set, and may not import :mod:`stars_deploy.data`.
"""

from stars_deploy.distill.distiller import Distiller

__all__ = ["Distiller"]
