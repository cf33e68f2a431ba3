"""Heckler et al., CVPR Workshops 2023: which pretrained extractor and layer suits AsymST, FastFlow and PatchCore."""
