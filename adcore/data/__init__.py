"""Data sets as lists of samples, read lazily.

    >>> dataset = load_dataset("mini", categories=["brick"])
    >>> dataset.train[0].image.size, dataset.test[-1].mask.shape
    ((256, 256), (256, 256))
"""

from adcore.data.packed import PackedSample
from adcore.data.photograph import PHOTOGRAPHS, photograph
from adcore.data.registry import DATASETS, dataset_name, find_dataset, load_dataset, split_names
from adcore.data.sample import Dataset, Sample, map_name
from adcore.data.transforms import View, load_uint8, read_images, read_masks

__all__ = ["DATASETS", "PHOTOGRAPHS", "Dataset", "PackedSample", "Sample", "View", "dataset_name", "find_dataset",
           "load_dataset", "load_uint8", "map_name", "photograph", "read_images", "read_masks", "split_names"]
