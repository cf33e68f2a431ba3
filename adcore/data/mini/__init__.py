"""`mini`: a small data set that needs no download, in MVTec's layout, with exact masks.

    brick, grass, gravel          crops of real photographs (photographs.py) with painted defects (litter.py)
    capsule, gear, chip, button   drawn: a surface with height, color and gloss (one file per object) and its rendering
                                  (shading.py), from shapes and noise (shapes.py)

    shot.py      identifies an image and provides all its random numbers
    picture.py   an image, the same image without its defect, and the mask of the pixels that the defect changed
    write.py     the files on disk, and the Dataset

Every image is a function of (category, split, index): the order of drawing, the number of threads and the number of other
images do not change a pixel.
"""

from adcore.data.mini.picture import CATEGORIES
from adcore.data.mini.write import VERSION, clean_counterpart, is_mini, load_mini, make

__all__ = ["CATEGORIES", "VERSION", "clean_counterpart", "is_mini", "load_mini", "make"]
