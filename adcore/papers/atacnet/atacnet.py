"""ATAC-Net: few-shot anomaly detection that scores an image and an attention-based crop of it (a "zoomed view").

Gupta et al., "ATAC-Net: Zoomed View Works Better for Anomaly Detection", 2024, and its supplement. No code is published.

    image -> backbone -> attention block -> anomaly mapping -> mean of the top 10 % of cells -> a_mp1 --+
                              |                                                                         +-> mean, a_mp
                              +-> channel-wise mean -> box -> crop, resized to the image's size -> a_mp2 --+

    paper     code         shape          meaning
    phi       extractor    (B, C, h, w)   backbone: ResNet-50 up to its last stage
    sigma     attention    (B, C, h, w)   self-attention convolution block
    tau       mapping      (B, h, w)      anomaly mapping layer: one value per cell
    gamma     Network      (B,)           tau o sigma o phi, the anomaly scorer network
    C_attn    where        (B, h, w)      channel-wise mean of the attention block's output
    x_cm      crop         (B, 3, H, W)   attention-cropped images
    a_mp1     first        (B,)           result for the image
    a_mp2     second       (B,)           result for the crop
    omega     threshold    scalar         of the crop; the paper does not print it

`both_looks` is the method: Algorithm 2, lines 6 to 8. `STEPS` lists the five steps of the ablation study (Sec. 3, Table 1); the
setting `step` selects one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from torch import Tensor, nn

from adcore.data import Sample, read_images, read_masks
from adcore.detector import Detector, Prediction
from adcore.features import FeatureExtractor
from adcore.metrics import image_scores
from adcore.papers.atacnet.cropping import READINGS, attention_boxes, crop, paste, upsample
from adcore.papers.atacnet.cutmix import MIXES
from adcore.papers.atacnet.deviation import AnomalyMapping, deviation_loss, deviation_loss_printed, he_initialized, top_mean
from adcore.papers.atacnet.few_shot import QUICK, FewShot, FewShotConfig, rotated
from adcore.papers.atacnet.self_attention import KINDS, AttentionBlock
from adcore.settings import WIDTH, Range

DEVIATIONS = {"clamped": deviation_loss, "as_printed": deviation_loss_printed}


class Step(NamedTuple):
    """One step of the ablation study.

    criterion  loss of the training. With a cross-entropy, a classification head gives the score (a logit); with the deviation
               loss, the score is the top-k score of the anomaly mapping
    zoom       what the crop follows: 'attention' in all of training and testing; 'gradcam' in the second half of training and
               in testing; 'none', there is no crop
    """

    criterion: str
    zoom: str


STEPS = {                                                               # column of Table 1
    "cutmix": Step("cross_entropy", zoom="none"),                       # CUT-MIX
    "weighted_ce": Step("weighted_cross_entropy", zoom="none"),         # Weighted CE
    "deviation": Step("deviation", zoom="none"),                        # Deviation Loss
    "gradcam": Step("deviation", zoom="gradcam"),                       # none
    "atacnet": Step("deviation", zoom="attention"),                     # ATAC-Net
}


@dataclass(frozen=True, kw_only=True)
class ATACNetConfig(FewShotConfig):
    """Settings of ATAC-Net and of the other steps of the ablation. The settings of the training are DevNet's, because the
    supplement does not give its own.

    step               a step of the ablation, see `STEPS`
    loss               'clamped' deviation loss, or 'as_printed', which has no lower bound
    anomaly_weight, genuine_weight  class weights of the weighted cross-entropy
    cutmix             how anomalies are made from normal images: 'in_image', 'yun' or 'none'
    made_share         fraction of the anomalous half of a batch that is made by CutMix
    attention, window, share        of the attention block: see `self_attention`
    threshold, reading, smallest    of the crop: see `attention_boxes`
    """

    backbone: str = "resnet50"
    resize: str = "bicubic"
    contrast: str = "global"
    statistics: str = "clip"
    step: str = "atacnet"
    loss: str = "clamped"
    anomaly_weight: float = 20.0
    genuine_weight: float = 0.5
    cutmix: str = "in_image"
    made_share: float = 0.5
    attention: str = "pairwise"
    window: int = 7
    share: int = 8
    threshold: float = 0.5
    reading: str = "relative"
    smallest: int = 32

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "step": tuple(STEPS), "loss": tuple(DEVIATIONS), "cutmix": (*MIXES, "none"), "attention": KINDS, "reading": READINGS}
    ranges: ClassVar[dict[str, Range]] = {
        "anomaly_weight": Range(above=0), "genuine_weight": Range(above=0), "made_share": Range(least=0, most=1),
        "window": Range(least=1, most=255), "share": WIDTH, "threshold": Range(above=0, most=1), "smallest": Range(least=1)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.window % 2:
            raise self.refused(f"window={self.window} must be odd: the window has a cell in its middle")


class Look(NamedTuple):
    """Result of one pass of the network over images.

    score    (B,) anomaly score, a_mp1 or a_mp2
    anomaly  (B, h, w) anomaly map, one value per cell
    where    (B, h, w) C_attn
    """

    score: Tensor
    anomaly: Tensor
    where: Tensor


class Network(nn.Module):
    """gamma = tau o sigma o phi: (B, 3, H, W) -> Look. Steps without attention have the identity as sigma.

    tapped       the output of the backbone, for Grad-CAM
    steps_taken  number of training steps so far; the Grad-CAM step zooms in the second half
    """

    steps_taken: Tensor

    def __init__(self, extractor: FeatureExtractor, config: ATACNetConfig) -> None:
        super().__init__()
        c, step, channels = config, STEPS[config.step], extractor.channels[0]
        self.top_share, self.classifies = c.top_share, step.criterion != "deviation"
        self.extractor = extractor
        self.tapped = nn.Identity()
        attends = step.zoom == "attention"
        self.attention = AttentionBlock(channels, c.attention, c.window, c.share) if attends else nn.Identity()
        self.mapping = AnomalyMapping(channels)
        self.head = nn.Linear(1, 1) if self.classifies else nn.Identity()
        for new in (self.attention, self.mapping, self.head):                                  # Algorithm 2, line 1
            he_initialized(new)
        self.register_buffer("steps_taken", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Look:
        features = self.attention(self.tapped(self.extractor(images)[0]))                      # (B, C, h, w)
        if self.classifies:
            # Mean over cells, 1x1 convolution and head together are a linear classifier after global average pooling.
            anomaly = self.mapping.combine(features)[:, 0]
            score = self.head(anomaly.mean(dim=(1, 2))[:, None])[:, 0]                         # a logit
        else:
            anomaly = self.mapping(features)
            score = top_mean(anomaly, self.top_share)
        return Look(score, anomaly, features.mean(1))


class ATACNet(FewShot):
    """ATAC-Net and the other steps of its ablation as a detector; one network per category.

    Raises:
        ParameterError: the feature grid is too small for the attention's window.
    """

    name: ClassVar[str] = "atacnet"
    version: ClassVar[int] = 2  # 2: rotations take the nearest pixel, 1: bilinear
    Config: ClassVar[type[Any]] = ATACNetConfig
    quick: ClassVar[dict[str, Any]] = {**QUICK, "smallest": 12, "statistics": "weights", "batch_size": 16}
    network: Network

    @property
    def step(self) -> Step:
        return STEPS[self.config.step]

    def build(self) -> Network:
        network = Network(self.extractor, self.config).eval()
        with torch.no_grad():
            network(torch.zeros(1, 3, *self.view.shape))  # raises if the grid is too small for the window
        return network

    def anomalies_needed(self) -> int:
        """0 with CutMix, which makes anomalies from normal images."""
        return int(self.config.cutmix == "none")

    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> Detector:
        """Train by Algorithm 2, see `FewShot.fit`."""
        self.network.steps_taken.zero_()  # a checkpoint restores its own count
        return super().fit(samples, checkpoint=checkpoint, progress=progress)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Half normal images X_N, half anomalies X_T: labeled ones and those made by CutMix (Algorithm 2, lines 2 to 5)."""
        c, half = self.config, self.config.batch_size // 2
        if c.cutmix == "none":
            made = 0
        elif not len(self.anomalous):
            made = half
        else:
            made = int((torch.rand(half) < c.made_share).sum())
        images = [self.pick(self.normal, half)]
        if made:
            images.append(MIXES[c.cutmix](self.pick(self.normal, made), self.pick(self.normal, made)))
        if made < half:
            images.append(self.pick(self.anomalous, half - made))
        return rotated(torch.cat(images), c.rotation), torch.arange(2, device=self.device).repeat_interleave(half)

    def both_looks(self, images: Tensor) -> tuple[Look, Tensor, Look]:
        """Score the images, crop them to what the network attends to, and score the crops (Algorithm 2, lines 6 to 8).

        (B, 3, H, W) -> look at the images, boxes (B, 4), look at the crops.
        """
        first = self.network(images)                                                           # line 6
        boxes = self.boxes(images, first)                                                      # line 7: Algorithm 1
        second = self.network(crop(images, boxes))                                             # line 8
        return first, boxes, second

    def boxes(self, images: Tensor, first: Look | None = None) -> Tensor:
        """Boxes of the crops, by attention or by Grad-CAM: (B, 3, H, W) -> (B, 4). They carry no gradient.

        first  look at these images, if there is one already
        """
        c = self.config
        where = gradcam(self.network, images) if self.step.zoom == "gradcam" else (first or self.network(images)).where
        return attention_boxes(where.float(), (images.shape[-2], images.shape[-1]), c.threshold, c.reading, c.smallest)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Loss of one training step: Algorithm 2, lines 6 to 11, or what another step of the ablation does instead."""
        c, net = self.config, self.network
        net.steps_taken += 1
        if self.step.zoom == "attention":
            first, _, second = self.both_looks(images)
            scores = (first.score + second.score) / 2                                          # line 9
        elif self.step.zoom == "gradcam" and net.steps_taken > c.epochs * c.steps // 2:
            scores = net(crop(images, self.boxes(images))).score                               # retraining on the zoomed view
        else:
            scores = net(images).score
        return self.criterion(scores, labels)

    def criterion(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The step's criterion, averaged over the batch: scores (B,), labels (B,) -> scalar."""
        c = self.config
        if self.step.criterion == "deviation":
            return DEVIATIONS[c.loss](scores, labels, c.margin)                                # lines 10 and 11
        weighted = self.step.criterion == "weighted_cross_entropy"
        weights = torch.where(labels.bool(), c.anomaly_weight, c.genuine_weight) if weighted else None
        return F.binary_cross_entropy_with_logits(scores, labels.float(), weights)

    def score(self, images: Tensor) -> Prediction:
        """Mean score of both looks. Inside the box the map is the mean of both maps, outside it is the first one."""
        size = images.shape[-2], images.shape[-1]
        if self.step.zoom == "none":
            look = self.network(images)
            return Prediction(look.score, upsample(look.anomaly, size))
        first, boxes, second = self.both_looks(images)
        whole = upsample(first.anomaly, size)
        inside = paste(torch.ones_like(second.anomaly), boxes, size) > 0
        maps = torch.where(inside, (whole + paste(second.anomaly, boxes, size)) / 2, whole)
        return Prediction((first.score + second.score) / 2, maps)

    @torch.no_grad()
    def diagnose(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Measures of the crop on test images, as far as there are normal and anomalous ones; none for a step without a crop.

        first_look_auroc           image AUROC of the first look's scores
        box_normal, box_anomalous  mean fraction of the image inside the box
        defect_inside              mean fraction of a defect's pixels inside the box; left out where there are no masks
        """
        if self.step.zoom == "none":
            return {}
        scores, boxes = [], []
        for images in read_images(samples, self.view):
            first = self.network(images.to(self.device))
            scores.append(first.score.cpu())
            boxes.append(self.boxes(images.to(self.device), first).cpu())
        t, left, b, r = torch.cat(boxes).unbind(1)
        (height, width), labels = self.view.shape, torch.tensor([sample.label for sample in samples], dtype=torch.bool)
        area = ((b - t) * (r - left)).double() / (height * width)
        found = {name: float(area[chosen].mean()) for name, chosen in (("box_normal", ~labels), ("box_anomalous", labels))
                 if chosen.any()}
        if len(found) == 2:
            found["first_look_auroc"] = image_scores(labels, torch.cat(scores)).auroc
        inside = [float(mask[t[i]:b[i], left[i]:r[i]].sum() / mask.sum())
                  for i, mask in enumerate(read_masks(samples, self.view)) if mask is not None and mask.any()]
        return found | ({"defect_inside": sum(inside) / len(inside)} if inside else {})


def gradcam(network: Network, images: Tensor) -> Tensor:
    """Grad-CAM of the score at the backbone's output, by captum: (B, 3, H, W) -> (B, h, w), never negative.

    Selvaraju et al., ICCV 2017: the channels are weighted by the mean of their gradients and added; negative sums become 0.
    """
    cam = LayerGradCam(lambda x: network(x).score, network.tapped).attribute(images, relu_attributions=True)
    return cam[:, 0].detach()
