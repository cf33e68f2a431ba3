"""ATAC-Net (Gupta et al., 2024): few-shot detection with attention cropping, beside DevNet and DRA."""
