"""DS2 (He et al., WACV 2024): dense self-supervised pretraining and a Gaussian density of patch features; CutPaste (3-way)."""
