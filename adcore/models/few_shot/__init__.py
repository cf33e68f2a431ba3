"""What ATAC-Net, DevNet and DRA are made of: detectors that see a few labelled anomalies."""
