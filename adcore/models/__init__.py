"""The methods, one file each; all of them are `Detector`s."""

from adcore.models.detector import Config, Detector, Prediction
from adcore.models.patchcore import PatchCore, PatchCoreConfig
from adcore.models.uniad import UniAD, UniADConfig

METHODS: dict[str, type[Detector]] = {method.name: method for method in (UniAD, PatchCore)}

__all__ = ["METHODS", "Config", "Detector", "PatchCore", "PatchCoreConfig", "Prediction", "UniAD", "UniADConfig"]
