"""Algorithm 1: boxes counted on paper, crops compared with torch's resizing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adcore.papers.atacnet.cropping import attention_boxes, crop, paste


def peak(h: int = 8, w: int = 8, *cells: tuple[int, int]) -> torch.Tensor:
    attention = torch.zeros(1, h, w)
    for y, x in cells:
        attention[0, y, x] = 1.0
    return attention


def test_the_box_spans_all_pixels_above_the_threshold():
    attention = torch.zeros(2, 4, 4)
    attention[0, 1, 2], attention[1, 0, 0], attention[1, 2, 3] = 3.0, 1.0, 0.9
    boxes = attention_boxes(attention, (4, 4), smallest=1)
    assert boxes.tolist() == [[1, 2, 2, 3], [0, 0, 3, 4]]
    # At 95 % only the larger of the two values passes.
    assert attention_boxes(attention, (4, 4), threshold=0.95, smallest=1)[1].tolist() == [0, 0, 1, 1]


def test_the_map_is_upsampled_before_it_is_compared_with_the_threshold():
    # One cell of 16 pixels in the center: after linear upsampling, the value is one half at 8 pixels from its center.
    (box,) = attention_boxes(peak(5, 5, (2, 2)), (80, 80), smallest=1).tolist()
    assert box == [32, 32, 48, 48]
    assert attention_boxes(peak(5, 5, (2, 2)), (80, 80), threshold=0.9, smallest=1)[0, 2] < 48


def test_the_relative_reading_does_not_depend_on_the_scale_and_the_printed_one_does():
    attention = torch.arange(1.0, 50).view(1, 7, 7) / 49
    boxes = {scale: [attention_boxes(scale * attention, (64, 64), reading=reading) for reading in ("relative", "as_printed")]
             for scale in (0.1, 1.0, 10.0)}
    assert all(torch.equal(relative, boxes[1.0][0]) for relative, _ in boxes.values())
    whole = torch.tensor([[0, 0, 64, 64]])
    # The threshold omega * max is 0.05 on the map scaled by 0.1, and 5 on the one scaled by 10, which no pixel reaches.
    area = {scale: ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])).sum() for scale, (_, b) in boxes.items()}
    assert torch.equal(boxes[10.0][1], whole) and area[0.1] > area[1.0]


@pytest.mark.parametrize("bad", [torch.zeros(1, 5, 5), -torch.ones(1, 5, 5), torch.full((1, 5, 5), torch.nan),
                                 torch.full((1, 5, 5), torch.inf)], ids=["zero", "negative", "nan", "inf"])
@pytest.mark.parametrize("reading", ["relative", "as_printed"])
def test_attention_that_is_not_positive_or_not_finite_keeps_the_whole_image(bad, reading):
    good = peak(5, 5, (2, 2))
    boxes = attention_boxes(torch.cat([bad, good]), (40, 60), reading=reading, smallest=4)
    assert boxes[0].tolist() == [0, 0, 40, 60] and boxes[1].tolist() != [0, 0, 40, 60]


def test_one_cell_in_a_corner_gives_a_box_of_the_smallest_side_inside_the_image():
    for cell, (t, left, b, r) in {(0, 0): (0, 0, 32, 32), (27, 27): (192, 192, 224, 224), (0, 27): (0, 192, 32, 224)}.items():
        assert attention_boxes(peak(28, 28, cell), (224, 224)).tolist() == [[t, left, b, r]]
    assert attention_boxes(peak(4, 4, (0, 0)), (20, 24), smallest=32).tolist() == [[0, 0, 20, 24]]  # not larger than the image


@given(st.integers(0, 2**31), st.sampled_from([(7, 7, 31, 45), (4, 9, 64, 32), (1, 1, 5, 7)]), st.integers(1, 40),
       st.floats(0.05, 1.0))
def test_boxes_lie_inside_the_image_and_have_at_least_the_smallest_side(seed, shape, smallest, threshold):
    h, w, height, width = shape
    attention = torch.rand(3, h, w, generator=torch.Generator().manual_seed(seed)) + 0.01
    boxes = attention_boxes(attention, (height, width), threshold=threshold, smallest=smallest)
    top, left, bottom, right = boxes.unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (bottom <= height).all() and (right <= width).all()
    assert (bottom - top >= min(smallest, height)).all() and (right - left >= min(smallest, width)).all()


def test_a_crop_is_the_box_resized_and_a_box_of_the_whole_image_changes_nothing():
    images = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    crops = crop(images, torch.tensor([[0, 0, 20, 30], [5, 10, 15, 25]]))
    expected = torch.nn.functional.interpolate(images[1:, :, 5:15, 10:25], (20, 30), mode="bilinear", align_corners=False)
    assert torch.equal(crops[0], images[0]) and torch.equal(crops[1:], expected)


def test_paste_puts_a_map_back_into_its_box():
    maps = torch.stack([torch.full((2, 2), 3.0), torch.arange(4.0).view(2, 2)])
    boxes = torch.tensor([[2, 3, 6, 9], [0, 0, 2, 2]])
    whole = paste(maps, boxes, (8, 12))
    assert whole[0, 2:6, 3:9].eq(3).all() and whole[0].sum() == 3 * 24
    assert torch.equal(whole[1, :2, :2], maps[1])


def test_a_short_side_grows_on_both_ends_and_at_the_border_on_one():
    attention = torch.zeros(2, 12, 12)
    attention[0, 5:7, 5:7] = attention[1, 0:2, 10:12] = 1
    assert attention_boxes(attention, (12, 12), smallest=6).tolist() == [[3, 3, 9, 9], [0, 6, 6, 12]]
    assert attention_boxes(attention, (12, 12), smallest=5).tolist() == [[4, 4, 9, 9], [0, 7, 5, 12]]    # the odd pixel below
