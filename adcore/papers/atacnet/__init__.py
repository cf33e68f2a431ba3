"""ATAC-Net (Gupta et al., 2024): few-shot anomaly detection by attention cropping, and the compared methods DevNet and DRA."""
