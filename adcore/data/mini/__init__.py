"""`mini`: a small data set that needs no download, in MVTec's layout, with exact masks.

    brick, grass, gravel          cut from real photographs (photographs.py), strewn with defects (litter.py)
    capsule, gear, chip, button   drawn: a surface of height, color and gloss (one file an object), lit and
                                  photographed (shading.py) with shapes and noise from shapes.py

    shot.py      which image, and all random numbers that go into it
    picture.py   one image, the same without its defect, and the mask of what the defect changed
    write.py     the files, and the Dataset

Every image is a function of (category, split, index): neither the order of making, nor the number of threads, nor how
many others are made alters a pixel.
"""

from adcore.data.mini.picture import CATEGORIES
from adcore.data.mini.write import VERSION, clean_counterpart, is_mini, load_mini, make

__all__ = ["CATEGORIES", "VERSION", "clean_counterpart", "is_mini", "load_mini", "make"]
