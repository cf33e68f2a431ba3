"""adcore: five papers on image anomaly detection, reproduced table by table and figure by figure.

    image files -> data -> features -> models.<method> -> score (B,) and map (B, H, W) -> metrics -> results
"""

__version__ = "0.1.0"
