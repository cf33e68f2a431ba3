"""Frozen backbones, their taps and their weights."""

from adcore.features.backbones import BACKBONES, Backbone, find_backbone
from adcore.features.cache import cached_features, images_digest
from adcore.features.extractor import FeatureExtractor, Tap, concatenate
from adcore.features.patches import patch_features, patch_grid
from adcore.features.stages import train_only
from adcore.features.weights import find_weights, load_weights, read_checkpoint

__all__ = ["BACKBONES", "Backbone", "FeatureExtractor", "Tap", "cached_features", "concatenate", "find_backbone",
           "find_weights", "images_digest", "load_weights", "patch_features", "patch_grid", "read_checkpoint", "train_only"]
