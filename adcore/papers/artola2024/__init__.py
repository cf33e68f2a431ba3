"""Artola et al., CVPR Workshops 2024: contrastive fine-tuning of features against a Gaussian mixture."""
