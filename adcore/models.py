"""The public face of the methods: every detector by its class, and `METHODS` by its name.

    >>> from adcore.models import METHODS
    >>> METHODS["patchcore"].__name__, METHODS["patchcore"].paper
    ('PatchCore', 'heckler2023')
"""

from adcore.detector import Config, Detector, Prediction
from adcore.papers.artola2024.contrastive import Contrastive, ContrastiveConfig
from adcore.papers.atacnet.atacnet import ATACNet, ATACNetConfig
from adcore.papers.atacnet.devnet import DevNet, DevNetConfig
from adcore.papers.atacnet.dra import DRA, DRAConfig
from adcore.papers.ds2.cutpaste import CutPaste, CutPasteConfig
from adcore.papers.ds2.ds2 import DS2, DS2Config
from adcore.papers.ds2.localization import GDE, GDEConfig
from adcore.papers.heckler2023.asymst import AsymST, AsymSTConfig
from adcore.papers.heckler2023.brightness import Brightness
from adcore.papers.heckler2023.fastflow import FastFlow, FastFlowConfig
from adcore.papers.heckler2023.patchcore import PatchCore, PatchCoreConfig
from adcore.papers.uniad2022.baselines import CNN, MLP, Transformer
from adcore.papers.uniad2022.uniad import UniAD, UniADConfig

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
