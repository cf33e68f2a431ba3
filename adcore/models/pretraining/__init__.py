"""Encoders trained from scratch, without labels: DS2's dense pretraining, CutPaste's three classes, and their parts."""
