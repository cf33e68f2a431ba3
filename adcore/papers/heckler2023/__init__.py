"""Heckler et al., CVPR Workshops 2023: pretrained extractors and layers compared for AsymST, FastFlow and PatchCore."""
