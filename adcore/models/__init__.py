"""The methods, one file each, all of them `Detector`s; what several of them are made of lies in folders."""

from adcore.models.asymst import AsymST, AsymSTConfig
from adcore.models.atacnet import ATACNet, ATACNetConfig
from adcore.models.baselines import CNN, MLP, Transformer
from adcore.models.brightness import Brightness
from adcore.models.contrastive import Contrastive, ContrastiveConfig
from adcore.models.cutpaste import CutPaste, CutPasteConfig
from adcore.models.detector import Config, Detector, Prediction
from adcore.models.devnet import DevNet, DevNetConfig
from adcore.models.dra import DRA, DRAConfig
from adcore.models.ds2 import DS2, DS2Config
from adcore.models.fastflow import FastFlow, FastFlowConfig
from adcore.models.gde import GDE, GDEConfig
from adcore.models.patchcore import PatchCore, PatchCoreConfig
from adcore.models.uniad import UniAD, UniADConfig

METHODS: dict[str, type[Detector]] = {method.name: method for method in (
    UniAD, MLP, CNN, Transformer, PatchCore, FastFlow, AsymST, Contrastive, DS2, CutPaste, GDE, ATACNet, DevNet, DRA,
    Brightness)}

__all__ = [
    "CNN",
    "DRA",
    "DS2",
    "GDE",
    "METHODS",
    "MLP",
    "ATACNet",
    "ATACNetConfig",
    "AsymST",
    "AsymSTConfig",
    "Brightness",
    "Config",
    "Contrastive",
    "ContrastiveConfig",
    "CutPaste",
    "CutPasteConfig",
    "DRAConfig",
    "DS2Config",
    "Detector",
    "DevNet",
    "DevNetConfig",
    "FastFlow",
    "FastFlowConfig",
    "GDEConfig",
    "PatchCore",
    "PatchCoreConfig",
    "Prediction",
    "Transformer",
    "UniAD",
    "UniADConfig",
]
