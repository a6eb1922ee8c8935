"""stars-deploy: data-free distillation of ANNs into spiking students, and their verified deployment."""

from importlib.metadata import version

__version__ = version("stars-deploy")
