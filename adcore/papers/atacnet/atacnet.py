"""ATAC-Net: a few anomalies, and a second look at what the network attends to.

Gupta et al., "ATAC-Net: Zoomed View Works Better for Anomaly Detection", 2024, and its supplement. No code is published.

    image -> backbone -> attention block -> |1x1 convolution| -> mean of the top tenth -> a1 --+
                              |                                                                +-> (a1 + a2) / 2
                              +-> channel mean -> box -> crop, at the image's size -> a2 ------+

    paper    code        shape         meaning
    phi      extractor   (B, C, h, w)  ResNet-50 up to its last stage
    sigma    attention   (B, C, h, w)  self-attention convolution block
    tau      mapping     (B, h, w)     anomaly of each cell
    C_attn   Look.where  (B, h, w)     channel-wise mean of sigma's output, by which the image is cropped
    omega    threshold   scalar        not printed

The steps of the ablation (Sec. 3) are configurations of it: `step` says how far the road to ATAC-Net is gone.
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
from adcore.errors import ParameterError
from adcore.features import FeatureExtractor
from adcore.metrics import image_scores
from adcore.papers.atacnet.cropping import READINGS, attention_boxes, crop, paste
from adcore.papers.atacnet.cutmix import MIXES
from adcore.papers.atacnet.deviation import AnomalyMapping, deviation_loss, deviation_loss_printed, he_initialized, top_mean
from adcore.papers.atacnet.few_shot import QUICK, FewShot, FewShotConfig, rotated
from adcore.papers.atacnet.self_attention import KINDS, AttentionBlock

STEPS = ("cutmix", "weighted_ce", "deviation", "gradcam", "atacnet")
CLASSIFIERS = ("cutmix", "weighted_ce")
ZOOMS = ("gradcam", "atacnet")
DEVIATIONS = {"clamped": deviation_loss, "as_printed": deviation_loss_printed}


@dataclass(frozen=True, kw_only=True)
class ATACNetConfig(FewShotConfig):
    """Settings of ATAC-Net and of the steps that lead to it. Those of training are DevNet's: the paper's own are not in the
    supplement.

    step               'cutmix': classifier with binary cross-entropy; 'weighted_ce': the same, weighted; 'deviation': deviation
                       loss on the top-k score; 'gradcam': the same for half of the epochs, then the other half on what Grad-CAM
                       zooms in on; 'atacnet'
    loss               'clamped' deviation loss, or 'as_printed' without a bound
    anomaly_weight, genuine_weight  of 'weighted_ce'
    cutmix             how anomalies are made from normal images: 'in_image', 'yun' or 'none'
    made_share         of the anomalous half of a batch, made by CutMix
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
        **FewShotConfig.choices, "step": STEPS, "loss": tuple(DEVIATIONS), "cutmix": (*MIXES, "none"), "attention": KINDS,
        "reading": READINGS}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold <= 1 or not 0 <= self.made_share <= 1 or self.smallest < 1:
            raise ParameterError(f"ATACNetConfig: threshold={self.threshold} and made_share={self.made_share} are shares, "
                                 f"smallest={self.smallest} is at least 1")


class Look(NamedTuple):
    """What one pass over images finds.

    score   (B,)
    anomaly (B, h, w), of each cell
    where   (B, h, w), C_attn
    """

    score: Tensor
    anomaly: Tensor
    where: Tensor


class Network(nn.Module):
    """tau o sigma o phi: (B, 3, H, W) -> Look. Without attention, sigma is the identity.

    steps_taken  counts training steps, because the Grad-CAM step changes what it does half-way
    """

    steps_taken: Tensor

    def __init__(self, extractor: FeatureExtractor, config: ATACNetConfig) -> None:
        super().__init__()
        c, channels = config, extractor.channels[0]
        self.top_share, self.classifies = c.top_share, c.step in CLASSIFIERS
        self.extractor = extractor
        self.tapped = nn.Identity()  # where Grad-CAM looks
        self.attention = AttentionBlock(channels, c.attention, c.window, c.share) if c.step == "atacnet" else nn.Identity()
        self.mapping = AnomalyMapping(channels)
        self.head = nn.Linear(1, 1) if self.classifies else nn.Identity()
        for new in (self.attention, self.mapping, self.head):                                  # Alg. 2, line 1
            he_initialized(new)
        self.register_buffer("steps_taken", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Look:
        features = self.attention(self.tapped(self.extractor(images)[0]))                      # (B, C, h, w)
        if self.classifies:
            # Mean, mapping and head together are the usual classifier behind global average pooling.
            anomaly = self.mapping.combine(features)[:, 0]
            score = self.head(anomaly.mean(dim=(1, 2))[:, None])[:, 0]                         # a logit
        else:
            anomaly = self.mapping(features)
            score = top_mean(anomaly, self.top_share)
        return Look(score, anomaly, features.mean(1))


class ATACNet(FewShot):
    """ATAC-Net and the steps towards it as a detector; one network a category.

    Raises:
        ParameterError: a grid too small for the attention's window.
    """

    name: ClassVar[str] = "atacnet"
    Config: ClassVar[type[Any]] = ATACNetConfig
    quick: ClassVar[dict[str, Any]] = {**QUICK, "smallest": 12, "statistics": "pretraining", "batch_size": 16}
    network: Network

    def build(self) -> Network:
        network = Network(self.extractor, self.config).eval()
        with torch.no_grad():
            network(torch.zeros(1, 3, *self.view.shape))  # which refuses a grid too small for the window
        return network

    def needs(self) -> int:
        """None where CutMix makes some."""
        return int(self.config.cutmix == "none")

    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> Detector:
        """As `FewShot.fit`; Algorithm 2."""
        self.network.steps_taken.zero_()  # a checkpoint brings its own count
        return super().fit(samples, checkpoint=checkpoint, progress=progress)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Half from X_N, half from X_T, the anomalies and what CutMix makes of normal images (Alg. 2, line 5)."""
        c, half = self.config, self.config.batch_size // 2
        made = 0 if c.cutmix == "none" else half if not len(self.anomalous) else int((torch.rand(half) < c.made_share).sum())
        images = [self.pick(self.normal, half)]
        if made:
            images.append(MIXES[c.cutmix](self.pick(self.normal, made), self.pick(self.normal, made)))
        if made < half:
            images.append(self.pick(self.anomalous, half - made))
        return rotated(torch.cat(images), c.rotation), torch.arange(2, device=self.device).repeat_interleave(half)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step of Algorithm 2, lines 6 to 12, or of the ablation."""
        c, net = self.config, self.network
        net.steps_taken += 1
        if c.step == "gradcam" and net.steps_taken > c.epochs * c.steps // 2:
            return self.criterion(net(crop(images, self.boxes(images))).score, labels)         # retraining on the zoomed view
        first = net(images)
        if c.step != "atacnet":
            return self.criterion(first.score, labels)
        second = net(crop(images, self.boxes(images, first)))
        return self.criterion((first.score + second.score) / 2, labels)

    def criterion(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The loss of this step: scores (B,), labels (B,) -> scalar."""
        c = self.config
        if c.step not in CLASSIFIERS:
            return DEVIATIONS[c.loss](scores, labels, c.margin)
        weights = torch.where(labels.bool(), c.anomaly_weight, c.genuine_weight) if c.step == "weighted_ce" else None
        return F.binary_cross_entropy_with_logits(scores, labels.float(), weights)

    def boxes(self, images: Tensor, first: Look | None = None) -> Tensor:
        """Where to look again: (B, 3, H, W) -> (B, 4), by attention or, in step four, by Grad-CAM. No gradient passes."""
        c = self.config
        where = gradcam(self.network, images) if c.step == "gradcam" else (first or self.network(images)).where
        return attention_boxes(where.float(), (images.shape[-2], images.shape[-1]), c.threshold, c.reading, c.smallest)

    def score(self, images: Tensor) -> Prediction:
        """Mean of both looks; inside the box the map is the mean of theirs, too."""
        size = images.shape[-2], images.shape[-1]
        first = self.network(images)
        whole = F.interpolate(first.anomaly[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        if self.config.step not in ZOOMS:
            return Prediction(first.score, whole)
        boxes = self.boxes(images, first)
        second = self.network(crop(images, boxes))
        inside = paste(torch.ones_like(second.anomaly), boxes, size) > 0
        maps = torch.where(inside, (whole + paste(second.anomaly, boxes, size)) / 2, whole)
        return Prediction((first.score + second.score) / 2, maps)

    @torch.no_grad()
    def diagnose(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Whether zooming helps: nothing for a step that does not zoom.

        first_look_auroc           image AUROC of a1 alone
        box_normal, box_anomalous  mean share of the image that is looked at again
        defect_inside              mean share of a defect's pixels that lie in the box; missing where there are no masks
        """
        if self.config.step not in ZOOMS:
            return {}
        scores, boxes = [], []
        for images in read_images(samples, self.view):
            first = self.network(images.to(self.device))
            scores.append(first.score.cpu())
            boxes.append(self.boxes(images.to(self.device), first).cpu())
        t, left, b, r = torch.cat(boxes).unbind(1)
        (height, width), labels = self.view.shape, torch.tensor([sample.label for sample in samples], dtype=torch.bool)
        share = ((b - t) * (r - left)).double() / (height * width)
        found = {"box_normal": float(share[~labels].mean()), "box_anomalous": float(share[labels].mean()),
                 "first_look_auroc": image_scores(labels, torch.cat(scores)).auroc}
        inside = [float(mask[t[i]:b[i], left[i]:r[i]].sum() / mask.sum())
                  for i, mask in enumerate(read_masks(samples, self.view)) if mask is not None and mask.any()]
        return found | ({"defect_inside": sum(inside) / len(inside)} if inside else {})


def gradcam(network: Network, images: Tensor) -> Tensor:
    """Grad-CAM of the score at the tap, by captum: (B, 3, H, W) -> (B, h, w), not negative.

    Selvaraju et al., ICCV 2017: channels weighted by the mean of their gradient, summed, negatives cut off.
    """
    found = LayerGradCam(lambda x: network(x).score, network.tapped).attribute(images, relu_attributions=True)
    return found[:, 0].detach()
